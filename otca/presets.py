"""Named settings: what a medium and tier change of the defaults, for training and for evaluation.

Order of precedence, lowest first: the dataclass default, the tier, the method's own settings, a YAML file, the command
line. Marks as in the README's deviation ledger: [paper], [reader], [sibling], [ours].
"""

from __future__ import annotations

import difflib

from otca.config import EvalConfig, TrainConfig
from otca.errors import InputError

VIDEO = {"policy.path": "embedded:video", "prompts": "embedded:video/train", "rewards": ["vq", "mq", "ta"]}
"""What every tier of the embedded video task has in common."""

TRAIN: dict[str, dict[str, object]] = {
    # Minutes on two cores: 64 samples × 6 steps × 30 iterations [ours].
    "image/quick": {
        "iterations": 30,
        "prompts_per_iteration": 8,
        "group_size": 8,
        "micro_batch": 32,
        "sampler.steps": 6,
        "sampler.shift": 3.0,
        "optimizer.learning_rate": 1e-4,  # results/tuning
        "save_every": 20,
    },
    # The standardised numbers of the embedded task: 32 samples × 8 steps × 60 iterations [ours].
    "image/cpu": {
        "iterations": 60,
        "prompts_per_iteration": 4,
        "group_size": 8,
        "micro_batch": 16,
        "sampler.steps": 8,
        "sampler.shift": 3.0,
        "optimizer.learning_rate": 1e-4,  # results/tuning
        "save_every": 20,
    },
    # A quarter of an hour on two cores: 32 videos × 8 steps × 40 iterations [ours].
    "video/quick": VIDEO
    | {
        "iterations": 40,
        "prompts_per_iteration": 4,
        "group_size": 8,
        "micro_batch": 16,
        "sampler.steps": 8,
        "sampler.shift": 3.0,
        "optimizer.learning_rate": 2e-4,  # results/tuning
        "save_every": 10,
    },
    # The standardised numbers of the embedded task: 32 videos × 8 steps × 60 iterations [ours].
    "video/cpu": VIDEO
    | {
        "iterations": 60,
        "prompts_per_iteration": 4,
        "group_size": 8,
        "micro_batch": 16,
        "sampler.steps": 8,
        "sampler.shift": 3.0,
        "optimizer.learning_rate": 2e-4,  # results/tuning
        "save_every": 20,
    },
    # FLUX.1-dev, 512 px, 20 train steps [reader]; G 12, lr 1e-5, shift 3, η .3, 60 % of steps, clip 1e-4 [sibling: ViPO].
    "image/paper": {
        "iterations": 300,
        "prompts": "prompts/hpdv2_train.jsonl",
        "prompts_per_iteration": 32,
        "group_size": 12,
        "micro_batch": 4,
        "policy.path": "black-forest-labs/FLUX.1-dev",
        "policy.height": 512,
        "policy.width": 512,
        "policy.precision": "bf16",
        "policy.gradient_checkpointing": True,
        "sampler.kind": "dance_sde",
        "sampler.level": 0.3,
        "sampler.steps": 20,
        "step_selection.kind": "random_fraction",
        "step_selection.fraction": 0.6,
        "loss.clip_low": 1e-4,
        "loss.clip_high": 1e-4,
        "optimizer.learning_rate": 1e-5,
        "optimizer.ema_decay": 0.995,
        "save_every": 20,
    },
}

EVAL: dict[str, dict[str, object]] = {
    "image/quick": {"prompts": 120, "samples_per_prompt": 2},
    "image/cpu": {"prompts": 600, "samples_per_prompt": 4},
    "video/quick": {"source": "embedded:video/test", "prompts": 84, "samples_per_prompt": 1},
    "video/cpu": {"source": "embedded:video/test", "prompts": 350, "samples_per_prompt": 2},
    "image/paper": {"source": "prompts/hpdv2_test.jsonl", "prompts": 1000, "samples_per_prompt": 1, "steps": 50},
}

SEEDS = {"quick": 2, "cpu": 10, "paper": 1}
"""Paired seeds of the headline arms, fixed before any run."""


def preset(name: str) -> dict[str, object]:
    """Dotted training settings of ``medium/tier``."""
    return _find(TRAIN, name)


def eval_config(name: str) -> EvalConfig:
    """Evaluation settings of ``medium/tier``."""
    return EvalConfig(**_find(EVAL, name))


def train_config(name: str, method_name: str, method_settings: dict[str, object], seed: int) -> TrainConfig:
    """The config of one arm of a table: tier, then what the method changes."""
    return TrainConfig.from_dotted(_find(TRAIN, name) | method_settings | {"method": method_name, "seed": seed})


def _find(table: dict[str, dict[str, object]], name: str) -> dict[str, object]:
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown preset {name!r}{hint} (known: {', '.join(table)})")
    return table[name]
