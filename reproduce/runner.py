"""Run the arms of a table, and other tasks, side by side: one process a core and one thread a process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from baselines import find_method
from eval.evaluate import evaluate
from eval.held_out import held_out_names, held_out_of
from otca import presets
from otca.config import TrainConfig
from otca.distributed import launched, process_state
from otca.errors import TrainingError
from otca.files import run_lock
from otca.models.base import build_policy
from otca.rewards.base import build_reward
from otca.rewards.measured import check_trained_metrics
from otca.runs import RunSpec, begin_run, code_of, finish_run, is_finished
from otca.trainer import Trainer
from reproduce.costs import write_cost
from reproduce.probe import probe


def arm_config(arm: RunSpec) -> TrainConfig:
    """The resolved training config of an arm (its variant last); ``base`` takes the tier's settings and trains nothing."""
    settings = {} if arm.method == "base" else find_method(arm.method).settings
    return presets.train_config(f"{arm.modality}/{arm.tier}", arm.method, settings | dict(arm.settings), arm.seed)


def check_trained_arms(arms: Sequence[RunSpec]) -> None:
    """Raise InputError where an arm would train on what its evaluation holds out."""
    for arm in arms:
        place = f"{arm.modality}/{arm.tier}"
        check_trained_metrics(arm, arm_config(arm).rewards, place, held_out_names(place))


def run_arm(arm: RunSpec, root: Path) -> None:
    """Train (resuming), evaluate, and seal one arm with its manifest; a finished arm is left as it is.

    Where a launcher started several processes, all of them call it and the main one writes. Raises InputError where another
    command is at work on the arm.
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
    """Train, evaluate and seal an arm in its folder."""
    config, processes = arm_config(arm), process_state()
    budget = {"network_evaluations": 0, "reward_calls": 0}
    if arm.method == "base":
        policy, averaged = build_policy(dataclasses.replace(config.policy, tuning="none"), processes.device), False
    else:
        trainer = Trainer(config, find_method(arm.method), folder)
        trainer.run()
        policy, averaged = trainer.policy, trainer.judge(presets.eval_config(f"{arm.modality}/{arm.tier}").weights)
        budget = {name: getattr(trainer.progress, name) for name in budget}
    tier, weights = f"{arm.modality}/{arm.tier}", (processes.device, config.reward_files, config.reward_timeout)
    honest = presets.train_config(tier, "base", {}, arm.seed).rewards  # an arm may train on others
    loaded = {} if arm.method == "base" else dict(zip(config.rewards, trainer.rewards))
    rewards = [loaded[name] if name in loaded else build_reward(name, *weights) for name in honest]
    evaluation = presets.eval_config(tier)
    if arm.method != "base":
        probe(policy, trainer.method, config, trainer.rewards, evaluation, folder)
    held_out = held_out_of(arm.modality, evaluation, *weights)
    started = time.perf_counter()
    protocol = evaluate(policy, held_out, evaluation, arm.seed, rewards, folder)
    if processes.is_main_process:
        write_cost(folder, time.perf_counter() - started)
        protocol |= {"weights": "average"} if averaged else {}
        finish_run(folder, arm, dataclasses.asdict(config), budget, protocol)


def run_arms(arms: list[RunSpec], root: Path, jobs: int) -> None:
    """Run what is missing in ``jobs`` forked workers, with a progress bar; the first failure ends the command.

    Under a launcher (``accelerate launch -m reproduce.table1``) all its processes train each arm together, one after another.
    """
    missing = [arm for arm in arms if not is_finished(root / arm.path)]
    if not missing:
        return
    if launched():
        for arm in missing:
            run_arm(arm, root)
        return
    with _workers(jobs) as pool:
        _watch({pool.submit(run_arm, arm, root): arm for arm in missing}, root)


def run_tasks(tasks: Sequence[Callable[[], None]], jobs: int) -> None:
    """Call independent, picklable tasks in ``jobs`` forked workers, with a progress bar; the first failure ends the command."""
    with _workers(jobs) as pool:
        futures = [pool.submit(task) for task in tasks]
        for future in tqdm(as_completed(futures), total=len(futures), unit="task", file=sys.stdout, dynamic_ncols=True):
            future.result()


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Forked workers of one thread each, stopped at once if the block fails."""
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=fork, initializer=_prepare, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BaseException as stop:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            if isinstance(stop, BrokenProcessPool):
                raise TrainingError(
                    "a worker was killed from outside, maybe for want of memory (--jobs 1 needs less); the same command goes on"
                ) from stop
            stop.add_note("the same command goes on where its runs stopped")
            raise


def _prepare(parent: int) -> None:
    """A worker has one thread, and does not outlive its parent: it would keep the run from whoever starts the command again."""
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.1)
    os._exit(1)


def _watch(futures: dict[Future, RunSpec], root: Path) -> None:
    """Show iterations done, mean rewards of the newest row, time left; raise the first worker's error."""
    totals = {arm: 0 if arm.method == "base" else arm_config(arm).iterations for arm in futures.values()}
    start = sum(_last_row(root / arm.path)[0] for arm in totals)
    bar = tqdm(total=sum(totals.values()), initial=start, unit="iteration", file=sys.stdout, dynamic_ncols=True, mininterval=1)
    while True:
        rows = {arm: _last_row(root / arm.path) for arm in totals}
        bar.update(sum(done for done, _ in rows.values()) - bar.n)
        running = [
            (arm, row) for future, arm in futures.items() if not future.done() for _, row in [rows[arm]] if row is not None
        ]
        if running:
            arm, row = running[0]
            rewards = " ".join(
                f"{c.removeprefix('reward_')} {row[c]:.3f}" for c in row.index if c.startswith("reward_") and c != "reward_calls"
            )
            bar.set_postfix_str(f"{arm}: {rewards}")
        for future in futures:
            if future.done():
                future.result()
        if all(future.done() for future in futures):
            bar.close()
            return
        time.sleep(0.5)


def _last_row(folder: Path) -> tuple[int, pd.Series | None]:
    """Iterations done and the newest row of train.csv."""
    path = folder / "train.csv"
    if not path.exists() or path.stat().st_size == 0:
        return 0, None
    rows = pd.read_csv(path, on_bad_lines="skip")
    return (len(rows), rows.iloc[-1]) if len(rows) else (0, None)
