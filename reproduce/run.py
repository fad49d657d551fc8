"""Runs: every method, variant and seed is trained and judged here, by one worker, several, or Slurm's.

    python -m reproduce.run worst_first --modality image --tier cpu        every seed of the tier, into runs/image/cpu/worst_first
    python -m reproduce.run otca otca_moca@rho0 --tier cpu --seeds 3       the first three seeds of methods and variants
    python -m reproduce.run otca --tier cpu --slurm PARTITION --jobs 40    as 40 jobs of Slurm, of one core (and --gpus N) each
    python -m reproduce.run otca --tier cpu --progress                     done, running, left

A method is a file in baselines/, a variant a line in reproduce/variants.py. Start the same command again to go on after a stop.
Any number of workers, started and killed at any time, share a set of runs: each takes one that is neither finished nor in work.
"""

from __future__ import annotations

import argparse
import json
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

import pandas as pd
import submitit
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from eval.columns import METRICS
from eval.markup import number, show
from eval.store import COST, run_values
from otca.distributed import end_processes, is_main, launched
from otca.errors import InputError, InUse, RewardError, TrainingError, one_line
from otca.files import is_held
from otca.presets import SEEDS
from otca.runs import RunSpec, is_finished
from otca.signals import LAST_CALL, run_command
from reproduce.one_run import arm_config, check_trained_arms, run_arm

RUNS = Path("runs")
LOGS = RUNS / "grid"
"""Where workers keep their logs."""
HOURS = 24
"""Time of a Slurm job."""


# ------------------------------------------------------------------------------------------------------------ many runs
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
    """Make every missing run in ``jobs`` workers on this machine or in a ``slurm`` partition, with one progress bar.

    Under a launcher (``accelerate launch -m reproduce.table1``) all its processes train each run together. A job of Slurm asks
    for ``gpus`` GPUs; local workers share this machine's first one. Ctrl-C ends local workers, which keep their iteration's end;
    those of Slurm go on. Raises InputError where Slurm is missing or rejects a job, TrainingError unless all runs are finished
    in the end.
    """
    missing = [arm for arm in arms if not is_finished(root / arm.path)]
    if launched():
        for arm in missing:
            run_arm(arm, root)
    if launched() or not missing:
        return
    executor, started = _executor(slurm, gpus), []
    try:
        for _ in range(jobs if slurm else min(jobs, len(missing))):
            try:
                started.append(executor.submit(Job(tuple(arms), root.resolve())))
            except (FailedJobError, FailedSubmissionError) as error:  # what sbatch said
                raise InputError(
                    f"Slurm rejected a job: {one_line(error)}; check --slurm and --gpus (jobs before it go on)"
                ) from error
        _watch(arms, root, started)
    except BaseException as stop:
        if not slurm:
            _end(started)
            stop.add_note("the same command goes on where its runs stopped")
        raise
    failed = sorted({line for job in started for line in _failures(job)})
    if failed:
        raise TrainingError(f"{len(failed)} runs failed, the first: {failed[0]}; mend that and start the same command again")
    unfinished = [arm for arm in arms if not is_finished(root / arm.path)]
    if unfinished:
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


def run_tasks(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    """Call independent, picklable tasks in ``jobs`` forked processes, with a progress bar; the first failure ends the command."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=fork, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(task) for task in tasks]
        for future in track(as_completed(futures), "tasks", total=len(futures)):
            future.result()


# ------------------------------------------------------------------------------------------------------------- progress
def iterations_of(arm: RunSpec, root: Path) -> tuple[int, int]:
    """(iterations done, all of them) of a run; an evaluation counts as one more."""
    path, total = root / arm.path / "train.csv", 0 if arm.method == "base" else arm_config(arm).iterations
    done = max(0, path.read_bytes().count(b"\n") - 1) if path.is_file() else 0
    finished = is_finished(root / arm.path)
    return (total + 1 if finished else min(done, total)), total + 1


def _watch(arms: Sequence[RunSpec], root: Path, started: Sequence[submitit.Job]) -> None:
    """Show iterations done, runs in work and the time left, until no worker is left."""
    counts = {arm: iterations_of(arm, root) for arm in arms}
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("iterations,"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, TextColumn("{task.description}"), refresh_per_second=2) as bar:
        task = bar.add_task("starting", total=sum(total for _, total in counts.values()))
        while not all(job.done() for job in started):
            counts |= {arm: iterations_of(arm, root) for arm, (done, total) in counts.items() if done < total}
            running = [f"{arm.modality} {arm}" for arm in arms if counts[arm][0] < counts[arm][1] and is_held(root / arm.path)]
            bar.update(task, completed=sum(done for done, _ in counts.values()), description=" · ".join(running[:2]))
            time.sleep(1.0)


def show_progress(arms: Sequence[RunSpec], root: Path, jobs: int) -> None:
    """Print done, running, left and minutes left by modality and method; runs left cost what finished ones of the method did."""
    rows = []
    for arm in dict.fromkeys(arms):
        folder, (reached, total) = root / arm.path, iterations_of(arm, root)
        done, cost = is_finished(folder), folder / COST
        spent = json.loads(cost.read_text()) if done and cost.is_file() else {}
        seconds = sum(spent.get(f"{part}_seconds", 0.0) for part in ("train", "evaluate")) if spent else None
        rows.append((arm.modality, arm.name, done, not done and is_held(folder), seconds, 1 - reached / total))
    table = pd.DataFrame(rows, columns=["modality", "method", "done", "running", "seconds", "to_do"])
    typical = table.groupby(["modality", "method"])["seconds"].transform("mean")
    trained = table[table["method"] != "base"].groupby("modality")["seconds"].mean()
    table["minutes left"] = table["to_do"] * typical.fillna(table["modality"].map(trained)).astype(float) / 60
    table["left"] = ~table["done"] & ~table["running"]
    counted = ["done", "running", "left", "minutes left"]
    sums = table.groupby(["modality", "method"], sort=False)[counted].sum(min_count=1).reset_index()
    total, known = sums[counted].sum(), sums["minutes left"].notna().all()
    hours = f"{total['minutes left'] / 60 / jobs:.1f} hours with {jobs} workers" if known else "unknown as yet"
    cells = {name: [f"{value:.0f}".replace("nan", "?") for value in sums[name].astype(float)] for name in counted}
    said = f"{total['done']:.0f} done, {total['running']:.0f} running, {total['left']:.0f} left; time left: {hours}"
    show("Runs", {"method": list(sums["method"]), "modality": list(sums["modality"])} | cells, said)


def show_made(arms: Sequence[RunSpec], root: Path) -> None:
    """Print what finished runs came to: one row a method, means over its seeds on test prompts."""
    values = pd.DataFrame([{"method": arm.name, "seeds": 1} | run_values(root / arm.path) for arm in arms])
    trained = [name for name in METRICS if not METRICS[name].held_out]
    shown = [name for name in ("accuracy", *trained, "hacking_gap") if name in values]
    means = values.groupby("method", sort=False)[shown].mean()
    grid = {"Method": list(means.index), "Seeds": [str(n) for n in values.groupby("method", sort=False)["seeds"].sum()]}
    grid |= {METRICS[name].label: [number(value, METRICS[name].decimals) for value in means[name]] for name in shown}
    folders = " ".join(dict.fromkeys(str((root / arm.path).parent) for arm in arms))
    show("Means over seeds, test prompts", grid, f"differences with intervals: python -m reproduce.compare {folders}")


# ---------------------------------------------------------------------------------------------------------- command line
def positive(text: str) -> int:
    """A whole number above 0, of an option."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]}: give a whole number above 0, or leave it out")
    return int(text)


def script(name: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of ``python -m reproduce.<name>``, whose help starts with the module's text."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m reproduce.{name}", description=description, formatter_class=formatter)


def add_tier(parser: argparse.ArgumentParser) -> None:
    """The option ``--tier``."""
    parser.add_argument("--tier", choices=tuple(SEEDS), default="quick", help="how large the runs are (default: quick)")


def add_modality(parser: argparse.ArgumentParser) -> None:
    """The option ``--modality``."""
    parser.add_argument("--modality", choices=("image", "video"), default="image", help="which task (default: image)")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The option ``--jobs``."""
    cores = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=positive, default=cores, metavar="N", help="workers (default: one a core; one with a GPU)")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of whatever makes runs."""
    add_jobs(parser)
    parser.add_argument("--slurm", default="", metavar="PARTITION", help="submit the workers to this partition of Slurm")
    parser.add_argument("--gpus", type=positive, default=0, metavar="N", help="with --slurm: GPUs of each job (default: none)")
    parser.add_argument("--dry-run", action="store_true", help="resolve settings, files, disk space and processes, and stop")
    parser.add_argument("--progress", action="store_true", help="print how far the runs are, and stop")
    parser.add_argument("--allow-trained-metric", action="store_true", help="let a run train on a held-out metric")


def make_runs(name: str, tier: str, arms: Sequence[RunSpec], args: argparse.Namespace, root: Path = RUNS) -> int | None:
    """What `add_options` asks for; an exit code where that was not to make the runs."""
    if args.progress:
        show_progress(arms, root, args.jobs)
        return 0
    if args.gpus and not args.slurm:
        raise InputError(f"--gpus {args.gpus} goes with --slurm; local workers take this machine's GPU by themselves")
    if not args.allow_trained_metric:
        check_trained_arms(arms)
    if args.dry_run:
        from reproduce.dry_run import preflight

        return preflight(name, tier, list(arms), root) if is_main() else 0
    missing = sum(not is_finished(root / arm.path) for arm in arms)
    if is_main():
        print(f"{name}, {tier} tier: {len(arms)} runs, {missing} to make; the same command goes on after a stop")
    run_arms(arms, root, args.jobs, args.slurm, args.gpus)
    return None


def main(argv: list[str] | None = None) -> int:
    """Parse, run, say where the runs are; exit code 2 with one line where something cannot be done."""
    from reproduce.variants import named_arm

    parser = script("run", __doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a method of baselines/, or method@variant")
    add_modality(parser)
    add_tier(parser)
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="so many seeds, from 0 (default: as the tier's headline methods)"
    )
    add_options(parser)
    args = parser.parse_args(argv)

    def command() -> int:
        names, seeds = dict.fromkeys(args.names), args.seeds or SEEDS[args.tier]
        arms = [named_arm(args.modality, args.tier, name, seed) for seed in range(seeds) for name in names]
        code = make_runs(", ".join(names), args.tier, arms, args)
        if code is None and is_main():
            show_made(arms, RUNS)
        end_processes()
        return code or 0

    return run_command("run", command)


if __name__ == "__main__":
    from reproduce import run  # workers unpickle `Job` by this name

    sys.exit(run.main())
