"""Named changes of a method's settings, ``method@variant``: the rows of the ablations and the readings of credit fidelity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from baselines import find_method
from otca.config import TrainConfig
from otca.errors import InputError
from otca.runs import RunSpec

VARIANTS: dict[str, dict[str, object]] = yaml.safe_load(Path(__file__).with_name("variants.yaml").read_text(encoding="utf-8"))


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
    """The run of a method or variant."""
    method, _, variant = name.partition("@")
    return RunSpec(modality, tier, method, seed, variant, tuple(variant_settings(name).items()))
