"""One run: train (resuming), probe its credit, judge, seal with its manifest; what its settings, task and hardware are."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from baselines import find_method
from eval.evaluate import evaluate, write_rows
from eval.held_out import held_out_names, held_out_of
from eval.media import quantise
from eval.store import COST, VERDICT
from otca import presets
from otca.config import EvalConfig, TrainConfig
from otca.distributed import is_main, process_state
from otca.files import write_atomic
from otca.methods import assign_credit
from otca.models.base import build_policy
from otca.prompts import evaluation_prompts
from otca.rewards.base import build_reward, check_trained_metrics
from otca.runs import RunSpec, code_of, finish_run, is_finished
from otca.sampling import make_batch, plan_of
from otca.tasks import scenes, video_scenes
from otca.trainer import Trainer, collect, locked_run
from otca.types import Credit, Prompt, Scores, Trajectory
from reproduce import judged

PROBE = "probe.csv"
"""File of a run's folder: how its method credits one fixed rollout, whose prompts and noise are the same for every run."""
COLUMNS = ["prompt_id", "step", "sigma", "objective", "reward", "credit"]
MOST_PROMPTS = 7
VALIDATIONS = 10
"""Points of a learning curve: a run of an embedded task is validated so often, unless its preset says how often."""
TASKS = {"embedded:image": scenes.NAME, "embedded:video": video_scenes.NAME}
"""Versioned names of the embedded tasks, by the source of their prompts."""


def arm_config(arm: RunSpec) -> TrainConfig:
    """The resolved training config of a run (its variant last); ``base`` takes the tier's settings and trains nothing."""
    place = arm.place
    own = presets.preset(place)
    settings = {} if arm.method == "base" else find_method(arm.method).settings | presets.tuned(place, arm.method)
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
        check_trained_metrics(arm, arm_config(arm).rewards, arm.place, held_out_names(arm.place))


def run_arm(arm: RunSpec, root: Path) -> None:
    """Train (resuming), evaluate, and seal one run with its manifest; a finished one is left as it is. All processes call it.

    Raises InUse where another command is at work on the run.
    """
    folder, processes = root / arm.path, process_state()
    if is_finished(folder):
        return
    code_of()  # asked before training, during which the checkout may move on
    processes.wait_for_everyone()
    with locked_run(folder, arm_config(arm)):
        _make(arm, folder)
    processes.wait_for_everyone()


def _make(arm: RunSpec, folder: Path) -> None:
    """Train, evaluate and seal a run in its folder."""
    config, processes, place = arm_config(arm), process_state(), arm.place
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
        probe(trainer, evaluation, folder)
    honest = presets.train_config(place, "base", {}, arm.seed).rewards  # a variant may train on corrupted ones
    rewards = [loaded[name] if name in loaded else build_reward(name, *weights) for name in honest]
    rewards += [Verdict(arm.modality)] if task_of(place) in TASKS.values() else []
    started = time.perf_counter()
    protocol = {"task": task_of(place)} | evaluate(policy, held_out, evaluation, arm.seed, rewards, folder)
    protocol |= {"weights": "average"} if averaged else {}
    if processes.is_main_process:
        _write_cost(folder, time.perf_counter() - started)
        finish_run(folder, arm, dataclasses.asdict(config), budget, protocol)


class Verdict:
    """The training verifier's verdict of each sample; what it accepts beyond the held-out judge is the hacking gap."""

    name, range, source, licence, revision = VERDICT, (0.0, 1.0), "this repository, otca/tasks", "Apache-2.0", "2"

    def __init__(self, modality: str):
        self.task = judged.TASKS[modality]

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """1 where the verifier finds the prompt's spec fulfilled, else 0: float32 (B,)."""
        return torch.from_numpy(self.task.verdicts(media_BFCHW.cpu(), prompts)).float()


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


# ---------------------------------------------------------------------------------------------------------------- probe
def shown_prompts(evaluation: EvalConfig) -> list[Prompt]:
    """The first prompt of each skill of an evaluation, or its first prompts where they have no skills."""
    chosen: dict[str, Prompt] = {}
    for prompt in evaluation_prompts(evaluation):
        chosen.setdefault((prompt.spec or {}).get("skill", prompt.id), prompt)
    return list(chosen.values())[:MOST_PROMPTS]


def credited(trainer: Trainer, prompts: list[Prompt]):
    """A group of samples for each prompt, all steps stochastic but the last, and their credit: (Trajectory, Scores, Credit)."""
    policy, method, config = trainer.policy, trainer.method, trainer.config
    plan = plan_of(config, policy.shift, config.micro_batch, selection="all")
    batch = make_batch(prompts, list(range(len(prompts))), config.group_size, ("probe",), config.sampler.shared_noise)
    sampled, scores, _ = collect(policy, batch, plan, trainer.rewards, method.needs(config), config, trainer.value_head)
    return sampled, scores, assign_credit(method, sampled, scores, config)


def rows_of(sampled: Trajectory, scores: Scores, credit: Credit, group_size: int) -> pd.DataFrame:
    """Signed credit of the first sample of every group, a row a step and objective ("all" where a method credits one sum)."""
    reward_BK, names = scores.reward_BK, scores.names
    if credit.advantage_TBK.shape[2] == 1:  # a method that credits one sum of the objectives
        reward_BK, names = reward_BK.mean(1, keepdim=True), ("all",)
    rows = []
    for first in range(0, len(sampled.prompts), group_size):
        for t in np.flatnonzero(sampled.trained_T.numpy()):
            for k, name in enumerate(names):
                reward, share = float(reward_BK[first, k]), float(credit.advantage_TBK[t, first, k])
                rows.append((sampled.prompts[first].id, int(t), float(sampled.sigma_S[t]), name, reward, share))
    return pd.DataFrame(rows, columns=COLUMNS)


def probe(trainer: Trainer, evaluation: EvalConfig, folder: Path) -> None:
    """Write ``probe.csv`` into a run's folder; methods that do not credit the steps of a rollout have none."""
    if trainer.method.forward_loss:
        return
    found = credited(trainer, shown_prompts(evaluation))
    if is_main():
        write_rows(rows_of(*found, trainer.config.group_size), folder / PROBE)
