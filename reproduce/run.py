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
import dataclasses
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import submitit
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table as Grid
from submitit.core.utils import FailedJobError, FailedSubmissionError, UncompletedJobError

from baselines import find_method
from eval.evaluate import evaluate
from eval.held_out import held_out_names, held_out_of
from eval.media import quantise
from eval.store import COST
from otca import presets
from otca.config import TrainConfig
from otca.distributed import end_processes, is_main, launched, process_state
from otca.errors import InputError, InUse, RewardError, TrainingError, one_line
from otca.files import is_held, run_lock, write_atomic
from otca.models.base import build_policy
from otca.presets import SEEDS
from otca.rewards.base import build_reward
from otca.rewards.measured import check_trained_metrics
from otca.runs import RunSpec, begin_run, code_of, finish_run, is_finished
from otca.signals import LAST_CALL, run_command
from otca.tasks import scenes, video_scenes
from otca.trainer import Trainer
from reproduce.probe import probe

RUNS = Path("runs")
LOGS = RUNS / "grid"
"""Where workers keep their logs."""
HOURS = 24
"""Time of a Slurm job."""
VALIDATIONS = 10
"""Points of a learning curve: a run of an embedded task is validated so often, unless its preset says how often."""
TASKS = {"embedded:image": scenes.NAME, "embedded:video": video_scenes.NAME}
"""Versioned names of the embedded tasks, by the source of their prompts."""


# ------------------------------------------------------------------------------------------------------------- one run
def arm_config(arm: RunSpec) -> TrainConfig:
    """The resolved training config of a run (its variant last); ``base`` takes the tier's settings and trains nothing."""
    place = f"{arm.modality}/{arm.tier}"
    own = presets.preset(place)
    settings = {} if arm.method == "base" else find_method(arm.method).settings
    if "validation.every" not in own and task_of(place) in TASKS.values():
        steps = {"validation.steps": own.get("sampler.steps", 10), "validation.source": f"embedded:{arm.modality}/validation"}
        settings = {"validation.every": max(1, int(own["iterations"]) // VALIDATIONS)} | steps | settings
    return presets.train_config(place, arm.method, settings | dict(arm.settings), arm.seed)


def task_of(place: str) -> str:
    """What a tier is judged on: the versioned name of its embedded task, or its own source of prompts."""
    source = presets.eval_config(place).source
    return TASKS.get(source.partition("/")[0], source)


def check_trained_arms(arms: Sequence[RunSpec]) -> None:
    """Raise InputError where a run would train on what its evaluation holds out."""
    for arm in arms:
        place = f"{arm.modality}/{arm.tier}"
        check_trained_metrics(arm, arm_config(arm).rewards, place, held_out_names(place))


def run_arm(arm: RunSpec, root: Path) -> None:
    """Train (resuming), evaluate, and seal one run with its manifest; a finished one is left as it is.

    Where a launcher started several processes, all of them call it and the main one writes. Raises InUse where another command is
    at work on the run.
    """
    folder, processes = root / arm.path, process_state()
    if is_finished(folder):
        return
    code_of()  # asked before training, during which the checkout may move on
    processes.wait_for_everyone()
    with run_lock(folder) if processes.is_main_process else nullcontext():
        if processes.is_main_process:
            begin_run(folder, arm_config(arm))
        processes.wait_for_everyone()
        _make(arm, folder)
    processes.wait_for_everyone()


def _make(arm: RunSpec, folder: Path) -> None:
    """Train, evaluate and seal a run in its folder."""
    config, processes, place = arm_config(arm), process_state(), f"{arm.modality}/{arm.tier}"
    evaluation, weights = presets.eval_config(place), (processes.device, config.reward_files, config.reward_timeout)
    held_out = held_out_of(arm.modality, evaluation, *weights)
    budget = {"network_evaluations": 0, "reward_calls": 0}
    loaded, averaged = {}, False
    if arm.method == "base":
        policy = build_policy(dataclasses.replace(config.policy, tuning="none"), processes.device)
    else:
        trainer = Trainer(config, find_method(arm.method), folder)
        trainer.run(judge=_accuracy(held_out))
        averaged = trainer.judge(evaluation.weights)
        policy, loaded = trainer.policy, dict(zip(config.rewards, trainer.rewards))
        budget = {name: getattr(trainer.progress, name) for name in budget}
        probe(policy, trainer.method, config, trainer.rewards, evaluation, folder)
    honest = presets.train_config(place, "base", {}, arm.seed).rewards  # a variant may train on corrupted ones
    rewards = [loaded[name] if name in loaded else build_reward(name, *weights) for name in honest]
    started = time.perf_counter()
    protocol = {"task": task_of(place)} | evaluate(policy, held_out, evaluation, arm.seed, rewards, folder)
    protocol |= {"weights": "average"} if averaged else {}
    if processes.is_main_process:
        _write_cost(folder, time.perf_counter() - started)
        finish_run(folder, arm, dataclasses.asdict(config), budget, protocol)


def _accuracy(held_out) -> Callable | None:
    """The held-out judge as validation calls it: (media, prompts) → {"accuracy": one number a sample}; None without one."""
    judge = getattr(held_out, "judge", None)
    if judge is None:
        return None
    return lambda media_BFCHW, prompts: {"accuracy": judge.score(quantise(media_BFCHW.cpu()), prompts)}


def hardware() -> str:
    """Processor or GPU, cores and library version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def _write_cost(run: Path, evaluate_seconds: float) -> None:
    """The run's `COST`; training seconds are those of timing.csv, so a resumed run counts what was kept."""
    timing = run / "timing.csv"
    trained = float(pd.read_csv(timing)["total"].sum()) if timing.is_file() else 0.0
    cost = {"train_seconds": round(trained, 1), "evaluate_seconds": round(evaluate_seconds, 1), "hardware": hardware()}
    write_atomic(run / COST, json.dumps(cost) + "\n")


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
        folder = root / arm.path
        done, cost = is_finished(folder), folder / COST
        spent = json.loads(cost.read_text()) if done and cost.is_file() else {}
        seconds = sum(spent.get(f"{part}_seconds", 0.0) for part in ("train", "evaluate")) if spent else None
        reached, total = iterations_of(arm, root)
        rows.append((arm.modality, arm.name, done, not done and is_held(folder), seconds, 1 - reached / total))
    table = pd.DataFrame(rows, columns=["modality", "method", "done", "running", "seconds", "to_do"])
    typical = table.groupby(["modality", "method"])["seconds"].transform("mean")
    typical = typical.fillna(table.groupby("modality")["seconds"].transform("mean")).astype(float)
    table["minutes"], table["left"] = table["to_do"] * typical / 60, ~table["done"] & ~table["running"]
    sums = table.groupby(["modality", "method"], sort=False)[["done", "running", "left", "minutes"]].sum()
    grid = Grid("modality", "method", "done", "running", "left", "minutes left")
    for (modality, method), row in sums.iterrows():
        grid.add_row(modality, method, *(f"{int(row[name])}" for name in ("done", "running", "left")), f"{row['minutes']:.0f}")
    console = Console()
    console.print(grid)
    total = sums.sum()
    hours = f"{total['minutes'] / 60 / jobs:.1f} hours with {jobs} workers" if typical.notna().any() else "unknown as yet"
    console.print(f"{total['done']:.0f} done, {total['running']:.0f} running, {total['left']:.0f} left; time left: {hours}")


# ---------------------------------------------------------------------------------------------------------- command line
def positive(text: str) -> int:
    """A whole number above 0, of an option."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]}: give a whole number above 0, or leave it out")
    return int(text)


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
    run_arms(arms, root, args.jobs, args.slurm, args.gpus)
    return None


def main(argv: list[str] | None = None) -> int:
    """Parse, run, say where the runs are; exit code 2 with one line where something cannot be done."""
    from reproduce.variants import named_arm

    parser = argparse.ArgumentParser(
        prog="python -m reproduce.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a method of baselines/, or method@variant")
    parser.add_argument("--modality", choices=("image", "video"), default="image", help="(default: image)")
    parser.add_argument("--tier", choices=tuple(SEEDS), default="quick", help="how large the runs are (default: quick)")
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
            for folder in dict.fromkeys((RUNS / arm.path).parent for arm in arms):
                print(f"made: {folder} ({seeds} seeds); compare with: python -m reproduce.compare {folder}")
        end_processes()
        return code or 0

    return run_command("run", command)


if __name__ == "__main__":
    from reproduce import run  # workers unpickle `Job` by this name

    sys.exit(run.main())
