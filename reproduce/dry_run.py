"""What a table would do: every arm's settings resolved, every file looked for, nothing trained, downloaded or written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from baselines import find_method
from otca import presets
from otca.budget import evaluations_per_sample
from otca.config import PolicyConfig, TrainConfig
from otca.errors import InputError
from otca.files import model_notes, resolve_model
from otca.plan import trained_bytes
from otca.processes import process_state
from otca.prompts import load_prompts
from otca.rewards.base import build_reward, find_reward, is_remote
from otca.rewards.published import PublishedReward, find_files
from otca.runs import Arm, is_finished
from reproduce.runner import arm_config

COMPRESSION = 0.5
"""Share of its pixels' bytes that a lossless file of a sample takes, reckoned generously."""


def look_over(name: str, tier: str, arms: list[Arm], root: Path) -> int:
    """Print what a table's missing runs would read, cost and leave on disk; 2 if something is in their way, else 0."""
    missing = [arm for arm in arms if not is_finished(root / arm.path)]
    print(f"{name}, {tier} tier: {len(arms)} runs, {len(missing)} of them missing")
    configs = {arm: arm_config(arm) for arm in missing}
    problems: list[str] = []

    def check(what: str, look: Callable[[], str]) -> None:
        try:
            print(f"  {what}: {look()}")
        except InputError as error:
            problems.append(f"{what}: {error}")

    for path in dict.fromkeys(config.policy.path for config in configs.values()):
        check(f"model {path}", lambda path=path: _where(path))
    for source in dict.fromkeys(config.prompts for config in configs.values()):
        check(f"training prompts {source}", lambda source=source: f"{len(load_prompts(source)):,}")
    for medium in dict.fromkeys(arm.medium for arm in missing):
        evaluation = presets.eval_config(f"{medium}/{tier}")
        check(
            f"evaluation prompts {evaluation.source}",
            lambda e=evaluation: f"{len(load_prompts(e.source, e.prompts)):,} × {e.samples_per_prompt} samples",
        )
    for reward, files in dict.fromkeys((name, config.reward_files) for config in configs.values() for name in config.rewards):
        check(f"reward {reward}", lambda reward=reward, files=files: _source(reward, files))
    check("processes", lambda: _shared(configs))
    check("disk", lambda: _disk(configs, tier, root))
    evaluations = sum(_evaluations(arm, config) for arm, config in _trained(configs).items())
    print(f"  cost: {evaluations:,} network evaluations of training, guidance not counted; `python -m otca plan` says more")
    for problem in problems:
        print(f"  in the way: {problem}")
    return 2 if problems else 0


def _where(path: str) -> str:
    """Where a model's files are, or that they are to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    folder = resolve_model(path)
    if Path(folder).is_dir():
        return "in the package" if path.startswith("embedded:") else folder
    cached = try_to_load_from_cache(folder, "model_index.json")
    return f"in the hub's cache, {Path(cached).parent}" if cached else "not here; the first run downloads it from the hub"


def _source(reward: str, files: str) -> str:
    """Where a reward's definition comes from, or InputError where its files or its server are missing; no weights are read."""
    if is_remote(reward):
        return build_reward(reward).source
    reward_class = find_reward(reward)
    if issubclass(reward_class, PublishedReward):
        find_files(reward_class.card, files)
        return reward_class.card.source
    return reward_class().source


def _shared(configs: dict[Arm, TrainConfig]) -> str:
    """How many processes there are, or InputError where an arm's prompts cannot be shared evenly among them."""
    world = process_state().num_processes
    for arm, config in configs.items():
        try:
            config.samples_per_update(world)
        except InputError as error:
            raise InputError(f"{arm}: {error}") from error
    return str(world)


def _disk(configs: dict[Arm, TrainConfig], tier: str, root: Path) -> str:
    """Space that checkpoints and media take, or InputError where there is less."""
    trained = _trained(configs)
    sizes: dict[PolicyConfig, int] = {}
    for config in trained.values():
        if config.policy not in sizes:
            sizes[config.policy] = trained_bytes(config.policy)
    needed = sum(
        (config.keep_last + 2) * 4 * sizes[config.policy] for config in trained.values()
    )  # weights, two moments, an average; the best and one in writing
    for arm, config in configs.items():
        evaluation, policy = presets.eval_config(f"{arm.medium}/{tier}"), config.policy
        frames = policy.frames or model_notes(resolve_model(policy.path)).get("frames", 1)
        pixels = evaluation.prompts * evaluation.samples_per_prompt * frames * policy.height * policy.width
        needed += round(3 * pixels * COMPRESSION)
    free = shutil.disk_usage(next(folder for folder in (root, *root.resolve().parents) if folder.is_dir())).free
    said = f"{needed / 2**30:.1f} GiB at most, {free / 2**30:.1f} GiB free"
    if needed > free:
        raise InputError(f"{said}; make room, or run fewer arms at a time")
    return said


def _trained(configs: dict[Arm, TrainConfig]) -> dict[Arm, TrainConfig]:
    return {arm: config for arm, config in configs.items() if arm.method != "base"}


def _evaluations(arm: Arm, config: TrainConfig) -> int:
    samples = config.iterations * config.prompts_per_iteration * config.group_size
    return samples * evaluations_per_sample(config, find_method(arm.method))
