"""A grid of runs as submitit's jobs: local processes, one a core and one thread each, or Slurm's; how far it is.

A job takes one arm after another that is neither finished nor in work, until none is left; so any number of jobs, started at any
time and killed at any time, share a grid.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import submitit
import torch
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from otca.errors import InputError, InUse, RewardError, TrainingError, one_line
from otca.files import is_held
from otca.runs import RunSpec, is_finished
from otca.signals import LAST_CALL, run_command
from reproduce.costs import COST
from reproduce.runner import arm_config, run_arm

LOGS = Path("runs/grid")
"""Where jobs keep their logs."""
WATCH_SECONDS = 20.0
HOURS = 24
"""Time of a job."""


@dataclass
class Job:
    """What one job does; submitit calls it.

    Slurm sends SIGUSR2 90 s before a job's time is over, and at a preemption that gives notice (GraceTime, send_user_signal). On
    it submitit puts the job into the queue again, three times at most for its time. SIGTERM it lets pass: that comes before
    SIGUSR2. A job killed without notice is queued again by Slurm itself where PreemptMode is REQUEUE; where that is CANCEL it is
    lost, and submitit waits for it: stop the command and start it again.
    """

    arms: tuple[RunSpec, ...]
    root: Path

    def __call__(self) -> list[str]:
        """Make arms until all are finished or in other hands; returns a line for each that failed.

        SIGTERM ends a local job with the iteration's end kept, as it ends any command; one that was ended leaves no result.
        """
        torch.set_num_threads(1)
        failed: list[str] = []
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # signals are submitit's there
            self._work(failed)
        elif code := run_command("job", lambda: self._work(failed)):
            sys.exit(code)
        return failed

    def _work(self, failed: list[str]) -> None:
        for arm in self.arms:
            if is_finished(self.root / arm.path):
                continue
            try:
                run_arm(arm, self.root)
            except InUse:
                continue
            except (RewardError, TrainingError, ValueError) as error:
                traceback.print_exc()
                failed.append(f"{arm.modality} {arm}: {' '.join(str(error).split())}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again: what is finished is passed over, what was in work goes on from its newest checkpoint."""
        return submitit.helpers.DelayedSubmission(self)


def run_grid(arms: Sequence[RunSpec], root: Path, jobs: int, slurm: str = "", gpus: int = 0) -> None:
    """Make every missing arm in ``jobs`` jobs, on this machine or in a ``slurm`` partition; a table of progress meanwhile.

    A job of Slurm asks for ``gpus`` GPUs; local jobs share this machine's first one, if it has any. Ctrl-C ends local jobs, which
    keep their iteration's end; those of Slurm go on. Raises InputError where Slurm is missing or refuses a job, and TrainingError
    unless all arms are finished in the end.
    """
    if all(is_finished(root / arm.path) for arm in arms):
        return
    executor, started = _executor(slurm, gpus), []
    try:
        for _ in range(jobs):
            started.append(_submit(executor, Job(tuple(arms), root.resolve())))
        while not all(job.done() for job in started):
            print(f"{progress_text(arms, root, jobs)}\n", flush=True)
            _wait(started, WATCH_SECONDS)
    except BaseException:
        if not slurm:
            _end(started)
        raise
    print(progress_text(arms, root, jobs), flush=True)
    failed = sorted({line for job in started for line in _failures(job)})
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    _refuse_unfinished(arms, root, failed)


def _executor(slurm: str, gpus: int) -> submitit.AutoExecutor:
    """What starts jobs of one core each: submitit's for this machine, or for a partition of Slurm."""
    missing = [name for name in ("srun", "sbatch") if slurm and shutil.which(name) is None]
    if missing:
        raise InputError(
            f"--slurm {slurm}: {' and '.join(missing)} not found on PATH; run this on a login node of the cluster, or leave out "
            "--slurm for local processes"
        )
    executor = submitit.AutoExecutor(folder=LOGS, cluster="slurm" if slurm else "local")
    gpus = gpus if slurm else min(1, torch.cuda.device_count())
    executor.update_parameters(name="otca", timeout_min=60 * HOURS, cpus_per_task=1, gpus_per_node=gpus or None)
    if slurm:
        executor.update_parameters(slurm_partition=slurm, slurm_additional_parameters={"requeue": True})
    return executor


def _submit(executor: submitit.AutoExecutor, job: Job) -> submitit.Job:
    try:
        return executor.submit(job)
    except (FailedJobError, FailedSubmissionError) as error:  # what sbatch said
        raise InputError(f"Slurm refused a job: {one_line(error)}; see to --slurm and --gpus (jobs before it go on)") from error


def _failures(job: submitit.Job) -> list[str]:
    """The lines of a job that is over; of one that was killed, or ended by an error of its own, its log is named instead."""
    try:
        if job.paths.result_pickle.exists():  # else submitit waits for it
            return job.result()
    except UncompletedJobError:
        pass
    print(f"job {job.job_id} ended without a result; its log: {job.paths.stderr}", file=sys.stderr)
    return []


def _refuse_unfinished(arms: Sequence[RunSpec], root: Path, failed: Sequence[str]) -> None:
    """Raise TrainingError for arms that failed, that other processes have in work, or that were left unfinished."""
    if failed:
        raise TrainingError(f"{len(failed)} runs failed, the first: {failed[0]}; mend that and start the same command again")
    unfinished = [arm for arm in arms if not is_finished(root / arm.path)]
    in_work = [arm for arm in unfinished if is_held(root / arm.path)]
    if not unfinished:
        return
    first = f"the first: {unfinished[0].modality} {unfinished[0]}"
    if in_work == unfinished:
        raise TrainingError(
            f"{len(in_work)} of {len(arms)} runs are still in work in other processes ({first}); start the same command again "
            "when those have ended"
        )
    others = f", {len(in_work)} of them in work in other processes" if in_work else ""
    raise TrainingError(f"{len(unfinished)} of {len(arms)} runs are unfinished{others} ({first}); the same command goes on")


def _end(started: Sequence[submitit.Job]) -> None:
    """Tell local jobs to end, and wait for them. A local job's number is the pid of the process that passes signals on to it."""
    for job in started:
        if not job.done():
            os.kill(int(job.job_id), signal.SIGTERM)
    _wait(started, LAST_CALL)


def _wait(started: Sequence[submitit.Job], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(job.done() for job in started):
        time.sleep(0.2)


def progress(arms: Sequence[RunSpec], root: Path) -> pd.DataFrame:
    """One row a modality and method: runs done, running, left; seconds still to compute.

    An arm costs what the finished arms of its modality and method did on average; a method without one, what all of its
    modality's did.
    """
    rows = []
    for arm in dict.fromkeys(arms):
        folder = root / arm.path
        done = is_finished(folder)
        running = not done and is_held(folder)
        cost = json.loads((folder / COST).read_text()) if done and (folder / COST).is_file() else {}
        seconds = sum(cost.get(name, 0.0) for name in ("train_seconds", "evaluate_seconds")) if cost else None
        rows.append((arm.modality, arm.name, done, running, seconds, 1.0 - _share(arm, folder) if not done else 0.0))
    table = pd.DataFrame(rows, columns=["modality", "method", "done", "running", "seconds", "to_do"])
    typical = table.groupby(["modality", "method"])["seconds"].transform("mean")
    typical = typical.fillna(table.groupby("modality")["seconds"].transform("mean")).fillna(table["seconds"].mean())
    table["left"] = ~table["done"] & ~table["running"]
    table["seconds_left"] = table["to_do"] * typical
    sums = table.groupby(["modality", "method"], sort=False)[["done", "running", "left"]].sum()
    return sums.assign(
        seconds_left=table.groupby(["modality", "method"], sort=False)["seconds_left"].sum(min_count=1)
    ).reset_index()


def _share(arm: RunSpec, folder: Path) -> float:
    """Share of an unfinished arm's iterations that has rows."""
    path = folder / "train.csv"
    if arm.method == "base" or not path.is_file():
        return 0.0
    return min(1.0, max(0, len(path.read_text().splitlines()) - 1) / arm_config(arm).iterations)


def progress_text(arms: Sequence[RunSpec], root: Path, jobs: int) -> str:
    """The table of `progress`, and the hours left for so many jobs."""
    table = progress(arms, root)
    sums = table[["done", "running", "left"]].sum()
    seconds = table["seconds_left"].sum(min_count=1)
    hours = "unknown until a run is finished" if pd.isna(seconds) else f"{seconds / 3600 / jobs:.1f} hours"
    shown = table.assign(seconds_left=(table["seconds_left"] / 60).round(1)).rename(columns={"seconds_left": "minutes left"})
    return (
        f"{shown.to_string(index=False, na_rep='?')}\n"
        f"{sums['done']} done / {sums['running']} running / {sums['left']} left; time left with {jobs} jobs: {hours}"
    )
