"""Named changes of a method's settings, ``method@variant``: the rows of the ablations and the readings of credit fidelity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from baselines import find_method
from eval.tables import BASELINE
from otca import presets
from otca.config import TrainConfig
from otca.errors import InputError
from otca.plan import costs_of
from otca.runs import RunSpec

VARIANTS: dict[str, dict[str, object]] = yaml.safe_load(Path(__file__).with_name("variants.yaml").read_text(encoding="utf-8"))
EQUAL = "equal"
"""Suffix of a variant (``flow_grpo@equal``, ``otca@3steps-equal``) that gets static weighting's network evaluations."""


def variant_settings(name: str) -> dict[str, object]:
    """Settings that a name adds to its method's own: none for a plain method. Raises InputError for an unknown variant."""
    if "@" not in name:
        return {}
    if name not in VARIANTS:
        known = ", ".join(v for v in VARIANTS if v.partition("@")[0] == name.partition("@")[0])
        raise InputError(f"unknown variant {name!r} (known of this method: {known or 'none'}); add it to reproduce/variants.yaml")
    return VARIANTS[name]


def credit_config(name: str, config: TrainConfig) -> TrainConfig:
    """The config with the credit settings of a method or variant alone: what it changes of the sampling does not act."""
    settings = find_method(name.partition("@")[0]).settings | variant_settings(name)
    changes = {key.removeprefix("credit."): value for key, value in settings.items() if key.startswith("credit.")}
    return dataclasses.replace(config, credit=dataclasses.replace(config.credit, **changes))


def named_arm(modality: str, tier: str, name: str, seed: int) -> RunSpec:
    """The run of a method or variant, or of one with the suffix `EQUAL`."""
    method, _, variant = name.partition("@")
    if variant.rpartition("-")[2] == EQUAL:
        plain = name.removesuffix(EQUAL).rstrip("-@")
        settings = variant_settings(plain) | {"iterations": affordable_iterations(modality, tier, plain)}
    else:
        settings = variant_settings(name)
    return RunSpec(modality, tier, method, seed, variant, tuple(settings.items()))


def affordable_iterations(modality: str, tier: str, name: str) -> int:
    """Iterations of a method or variant that cost static weighting's network evaluations, to the nearest one."""
    costs = []
    for arm in (name, BASELINE):
        method = find_method(arm.partition("@")[0])
        config = presets.train_config(f"{modality}/{tier}", method.name, method.settings | variant_settings(arm), 0)
        costs.append(costs_of(config, method).evaluations * config.prompts_per_iteration * config.group_size)
    own, static = costs
    return max(1, round(config.iterations * static / own))
