"""What a table would do: every arm's settings resolved, every file looked for, its costs; nothing is trained or downloaded."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from baselines import find_method
from eval.held_out import MOTION
from eval.markup import show
from otca import presets
from otca.config import EvalConfig, TrainConfig
from otca.distributed import process_state
from otca.errors import InputError
from otca.files import resolve_model
from otca.plan import costs_of
from otca.prompts import evaluation_prompts, load_prompts
from otca.rewards.base import build_reward, find_reward, is_remote
from otca.rewards.published import PublishedReward, find_files
from otca.runs import RunSpec, is_finished
from otca.shapes import empty_policy
from reproduce.one_run import arm_config

COMPRESSION = 0.5
"""Share of its pixels' bytes that a lossless file of a sample takes, reckoned generously."""

MISSING = "not here; the first run downloads it from the hub (where it is gated, accept its licence there and log in before)"


def preflight(name: str, tier: str, arms: list[RunSpec], root: Path) -> int:
    """Print what a table's missing runs would read, cost and leave on disk; 2 if something is in their way, else 0."""
    missing = [arm for arm in arms if not is_finished(root / arm.path)]
    print(f"{name}, {tier} tier: {len(arms)} runs, {len(missing)} of them missing")
    configs = {arm: arm_config(arm) for arm in missing}
    trained = {arm: config for arm, config in configs.items() if arm.method != "base"}
    looks: dict[str, Callable[[], str]] = {}
    for config in configs.values():
        looks[f"model {config.policy.path}"] = partial(_where, config.policy.path)
        looks[f"training prompts {config.prompts}"] = lambda source=config.prompts: f"{len(load_prompts(source)):,}"
        looks |= {f"reward {reward}": partial(_source, reward, config.reward_files) for reward in config.rewards}
    for place in {arm.place for arm in missing}:
        judged, files = presets.eval_config(place), presets.train_config(place, "base", {}, 0).reward_files
        looks[f"evaluation prompts {judged.source}"] = partial(_judged_on, judged)
        looks |= {f"held-out metric {metric}": partial(_source, metric, files) for metric in judged.held_out if metric != MOTION}
    looks |= {"processes": partial(_shared, trained), "disk": partial(_disk, configs, root)}
    problems = []
    for what, look in looks.items():
        try:
            print(f"  {what}: {look()}")
        except InputError as error:
            problems.append(f"  in the way: {what}: {error}")
    if trained:
        _show_costs(trained)
    print("\n".join(problems), end="\n" * bool(problems))
    return 2 if problems else 0


def _show_costs(trained: dict[RunSpec, TrainConfig]) -> None:
    """Print network evaluations and reward calls of each method's runs, and all evaluations."""
    evaluations, calls, runs = Counter(), Counter(), Counter((arm.name, arm.modality) for arm in trained)
    for arm, config in trained.items():
        costs, samples = costs_of(config, find_method(arm.method)), config.prompts_per_iteration * config.group_size
        evaluations[arm.name, arm.modality] += config.iterations * samples * costs.evaluations
        calls[arm.name, arm.modality] += config.iterations * samples * costs.scored_media * len(config.rewards)
    grid = {"Method": [name for name, _ in runs], "Modality": [modality for _, modality in runs]}
    counted = {"Runs": runs, "Network evaluations": evaluations, "Reward calls": calls}
    grid |= {head: [f"{count[key]:,}" for key in runs] for head, count in counted.items()}
    show("To train", grid, f"{evaluations.total():,} network evaluations, guidance not counted; more: python -m otca plan")


def _where(path: str) -> str:
    """Where a model's files are, or that they are to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    folder = resolve_model(path)
    if Path(folder).is_dir():
        return "in the package" if path.startswith("embedded:") else folder
    cached = try_to_load_from_cache(folder, "model_index.json")
    return f"in the hub's cache, {Path(cached).parent}" if cached else MISSING


def _source(reward: str, files: str) -> str:
    """Where a reward's definition comes from, or InputError where its files or its server are missing; no weights are read."""
    if is_remote(reward):
        return build_reward(reward).source
    reward_class = find_reward(reward)
    if issubclass(reward_class, PublishedReward):
        find_files(reward_class.card, files)
        return reward_class.card.source
    return reward_class().source


def _shared(trained: dict[RunSpec, TrainConfig]) -> str:
    """How many processes there are, or InputError where an arm's samples cannot be shared evenly among them."""
    world = process_state().num_processes
    for arm, config in trained.items():
        try:
            config.shares(world)
        except InputError as error:
            raise InputError(f"{arm}: {error}") from error
    return str(world)


def _judged_on(evaluation: EvalConfig) -> str:
    return f"{len(evaluation_prompts(evaluation)):,} × {evaluation.samples_per_prompt} samples"


def _disk(configs: dict[RunSpec, TrainConfig], root: Path) -> str:
    """Space that models, encoded prompts, checkpoints and media take, or InputError where there is less."""
    sizes, made = Counter(), {policy: empty_policy(policy) for policy in {config.policy for config in configs.values()}}
    absent = {settings.path: parts for settings, (_, parts) in made.items() if _where(settings.path) == MISSING}
    counts = [p.numel() for parts in absent.values() for part in parts.values() for p in part.parameters()]
    sizes["models, in bf16"] = 2 * sum(counts)
    for arm, config in configs.items():
        (policy, _), judged = made[config.policy], presets.eval_config(arm.place)
        pixels = policy.frames * (judged.height or policy.height) * (judged.width or policy.width)
        sizes["media"] += round(3 * judged.prompts * judged.samples_per_prompt * pixels * COMPRESSION)
        if arm.method == "base":
            continue
        weights = sum(p.nbytes for p in policy.trainable_parameters())
        sizes["checkpoints"] += (config.keep_last + 2) * 4 * weights  # with moments and average; the best and one in writing
        if config.policy.prompt_cache:  # which runs share
            encoding = sum(math.prod(shape) for shape in policy.text_shapes()) * policy.dtype.itemsize
            texts = config.iterations * config.prompts_per_iteration
            sizes["encoded prompts"] = max(sizes["encoded prompts"], encoding * texts)
    needed = sizes.total()
    free = shutil.disk_usage(next(folder for folder in (root, *root.resolve().parents) if folder.is_dir())).free
    listed = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in sizes.items() if size)
    said = f"{needed / 2**30:.1f} GiB at most ({listed or 'nothing'}), {free / 2**30:.1f} GiB free"
    if needed > free:
        raise InputError(f"{said}; make room, or run fewer arms at a time")
    return said
