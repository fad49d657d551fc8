"""A grid of runs as submitit's jobs: local processes, one a core and one thread each, or Slurm's; how far it is.

A job takes one arm after another that is neither finished nor in work, until none is left; so any number of jobs, started at any
time and killed at any time, share a grid.
"""

from __future__ import annotations

import json
import os
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

from otca.ending import LAST_CALL, run_command
from otca.errors import InUse, RewardError, TrainingError
from otca.files import is_held
from otca.runs import Arm, is_finished
from reproduce.costs import COST
from reproduce.runner import arm_config, run_arm

LOGS = Path("runs/grid")
"""Where jobs keep their logs."""
WATCH_SECONDS = 20.0
SLURM_HOURS = 24


@dataclass
class Job:
    """What one job does; submitit calls it, and hands it to Slurm again when its time is over or the machine is taken back."""

    arms: tuple[Arm, ...]
    root: Path

    def __call__(self) -> list[str]:
        """Make arms until all are finished or in other hands; returns a line for each that failed.

        SIGTERM ends it with the iteration's end kept, as it ends any command.
        """
        torch.set_num_threads(1)
        failed: list[str] = []
        run_command("job", lambda: self._work(failed))
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
                failed.append(f"{arm.medium} {arm}: {' '.join(str(error).split())}")

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """The same again: what is finished is passed over, what was in work goes on from its checkpoint."""
        return submitit.helpers.DelayedSubmission(self)


def run_grid(arms: Sequence[Arm], root: Path, jobs: int, slurm: str = "") -> list[str]:
    """Make every missing arm in ``jobs`` jobs, on this machine or in a ``slurm`` partition; a table of progress meanwhile.

    Returns a line for each arm that failed. Ctrl-C ends local jobs, which keep their iteration's end; those of Slurm go on.
    """
    if all(is_finished(root / arm.path) for arm in arms):
        return []
    executor = submitit.AutoExecutor(folder=LOGS, cluster="slurm" if slurm else "local")
    gpus = min(1, torch.cuda.device_count())
    executor.update_parameters(name="otca", timeout_min=60 * SLURM_HOURS, cpus_per_task=1, gpus_per_node=gpus)
    if slurm:
        executor.update_parameters(slurm_partition=slurm)
    started = [executor.submit(Job(tuple(arms), root.resolve())) for _ in range(jobs)]
    try:
        while not all(job.done() for job in started):
            print(f"{progress_text(arms, root, jobs)}\n", flush=True)
            _wait(started, WATCH_SECONDS)
    except BaseException:
        if not slurm:
            _end(started)
        raise
    print(progress_text(arms, root, jobs), flush=True)
    failed = sorted({line for job in started for line in job.result()})
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    return failed


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


def progress(arms: Sequence[Arm], root: Path) -> pd.DataFrame:
    """One row a medium and method: runs done, running, left; seconds still to compute.

    An arm costs what the finished arms of its medium and method did on average; a method without one, what all of its medium's
    did.
    """
    rows = []
    for arm in dict.fromkeys(arms):
        folder = root / arm.path
        done = is_finished(folder)
        running = not done and is_held(folder)
        cost = json.loads((folder / COST).read_text()) if done and (folder / COST).is_file() else {}
        seconds = sum(cost.get(name, 0.0) for name in ("train_seconds", "evaluate_seconds")) if cost else None
        rows.append((arm.medium, arm.name, done, running, seconds, 1.0 - _share(arm, folder) if not done else 0.0))
    table = pd.DataFrame(rows, columns=["medium", "method", "done", "running", "seconds", "to_do"])
    typical = table.groupby(["medium", "method"])["seconds"].transform("mean")
    typical = typical.fillna(table.groupby("medium")["seconds"].transform("mean")).fillna(table["seconds"].mean())
    table["left"] = ~table["done"] & ~table["running"]
    table["seconds_left"] = table["to_do"] * typical
    sums = table.groupby(["medium", "method"], sort=False)[["done", "running", "left"]].sum()
    return sums.assign(
        seconds_left=table.groupby(["medium", "method"], sort=False)["seconds_left"].sum(min_count=1)
    ).reset_index()


def _share(arm: Arm, folder: Path) -> float:
    """Share of an unfinished arm's iterations that has rows."""
    path = folder / "train.csv"
    if arm.method == "base" or not path.is_file():
        return 0.0
    return min(1.0, max(0, len(path.read_text().splitlines()) - 1) / arm_config(arm).iterations)


def progress_text(arms: Sequence[Arm], root: Path, jobs: int) -> str:
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
