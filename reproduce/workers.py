"""Workers that share a set of runs, on this machine or as jobs of Slurm.

Any number of them, started and killed at any time: each takes a run that is neither finished nor in work elsewhere.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import submitit
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from otca.distributed import launched
from otca.errors import InputError, InUse, RewardError, TrainingError, one_line
from otca.files import is_held
from otca.runs import RunSpec, is_finished
from otca.signals import LAST_CALL, run_command
from reproduce.one_run import arm_config, run_arm

RUNS = Path("runs")
LOGS = RUNS / "grid"
"""Where workers keep their logs."""
HOURS = 24
"""Time of a Slurm job."""


@dataclass
class Job:
    """What one worker does; submitit calls it.

    Slurm sends SIGUSR2 90 s before a job's time is over and at a preemption with notice; submitit then queues it again. A job
    killed without notice is queued again by Slurm itself where PreemptMode is REQUEUE; else start the command again.
    """

    arms: tuple[RunSpec, ...]
    root: Path

    def __call__(self) -> list[str]:
        """Make runs until all are finished or in other hands; returns a line for each that failed."""
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
                failed.append(f"{arm.modality} {arm}: {one_line(error)}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again: what is finished is passed over, what was in work goes on from its latest checkpoint."""
        return submitit.helpers.DelayedSubmission(self)


def run_arms(arms: Sequence[RunSpec], root: Path, jobs: int, slurm: str = "", gpus: int = 0) -> None:
    """Make every missing run in ``jobs`` workers here or in a ``slurm`` partition (with ``gpus`` each), with one progress bar.

    Under a launcher (``accelerate launch -m reproduce.table1``) all its processes train each run together. Ctrl-C ends local
    workers, which keep their iteration's end; those of Slurm go on. Raises TrainingError unless all runs are finished in the end.
    """
    missing = [arm for arm in arms if not is_finished(root / arm.path)]
    if launched():
        for arm in missing:
            run_arm(arm, root)
        return
    if not missing:
        return
    executor, started = _executor(slurm, gpus), []
    try:
        for _ in range(jobs if slurm else min(jobs, len(missing))):
            started.append(executor.submit(Job(tuple(arms), root.resolve())))
        _watch(arms, root, started)
    except (FailedJobError, FailedSubmissionError) as error:  # what sbatch said
        raise InputError(f"Slurm rejected a job: {one_line(error)}; check --slurm and --gpus (jobs before it go on)") from error
    except BaseException as stop:
        if not slurm:
            _end(started)
            stop.add_note("the same command goes on where its runs stopped")
        raise
    if failed := sorted({line for job in started for line in _failures(job)}):
        raise TrainingError(f"{len(failed)} runs failed, the first: {failed[0]}; mend that and start the same command again")
    if unfinished := [arm for arm in arms if not is_finished(root / arm.path)]:
        in_work = sum(is_held(root / arm.path) for arm in unfinished)
        first = f"{in_work} of them in work in other processes; the first: {unfinished[0].modality} {unfinished[0]}"
        raise TrainingError(f"{len(unfinished)} of {len(arms)} runs are unfinished ({first}); the same command goes on")


def _executor(slurm: str, gpus: int) -> submitit.AutoExecutor:
    """What starts workers of one core each: submitit's for this machine, or for a partition of Slurm."""
    missing = [name for name in ("srun", "sbatch") if slurm and shutil.which(name) is None]
    if missing:
        raise InputError(f"--slurm {slurm}: {' and '.join(missing)} not found on PATH; run this on a login node, or leave it out")
    executor = submitit.AutoExecutor(folder=LOGS, cluster="slurm" if slurm else "local")
    gpus = gpus if slurm else min(1, torch.cuda.device_count())
    executor.update_parameters(name="otca", timeout_min=60 * HOURS, cpus_per_task=1, gpus_per_node=gpus or None)
    if slurm:
        executor.update_parameters(slurm_partition=slurm, slurm_additional_parameters={"requeue": True})
    return executor


def _failures(job: submitit.Job) -> list[str]:
    """The lines of a worker that is over; of one that was killed its log is named."""
    try:
        if job.paths.result_pickle.exists():  # else submitit waits for it
            return job.result()
    except UncompletedJobError:
        pass
    return [f"worker {job.job_id} was killed, maybe for want of memory (--jobs 1 needs less); its log: {job.paths.stderr}"]


def _end(started: Sequence[submitit.Job]) -> None:
    """Tell local workers to end, and wait. A local job's number is the pid of the process that passes signals on to it."""
    for job in started:
        if not job.done():
            os.kill(int(job.job_id), signal.SIGTERM)
    end = time.monotonic() + LAST_CALL
    while time.monotonic() < end and not all(job.done() for job in started):
        time.sleep(0.2)


def _watch(arms: Sequence[RunSpec], root: Path, started: Sequence[submitit.Job]) -> None:
    """Show iterations done, runs in work and the time left, until no worker is left."""
    counts = {arm: iterations_of(arm, root) for arm in arms}
    left = (TextColumn("iterations,"), TimeRemainingColumn(compact=True), TextColumn("left"), TextColumn("{task.description}"))
    with Progress(BarColumn(), MofNCompleteColumn(), *left, refresh_per_second=2) as bar:
        task = bar.add_task("starting", total=sum(total for _, total in counts.values()))
        while not all(job.done() for job in started):
            counts |= {arm: iterations_of(arm, root) for arm, (done, total) in counts.items() if done < total}
            running = [f"{arm.modality} {arm}" for arm in arms if counts[arm][0] < counts[arm][1] and is_held(root / arm.path)]
            bar.update(task, completed=sum(done for done, _ in counts.values()), description=" · ".join(running[:2]))
            time.sleep(1.0)


def iterations_of(arm: RunSpec, root: Path) -> tuple[int, int]:
    """(iterations done, all of them) of a run; an evaluation counts as one more."""
    path, total = root / arm.path / "train.csv", 0 if arm.method == "base" else arm_config(arm).iterations
    done = max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0
    finished = is_finished(root / arm.path)
    return (total + 1 if finished else min(done, total)), total + 1


def run_tasks(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    """Call independent, picklable tasks in ``jobs`` forked processes, with a progress bar; the first failure ends the command."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(task) for task in tasks]
        for future in track(as_completed(futures), "tasks", total=len(futures)):
            future.result()
