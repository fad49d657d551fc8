"""Named changes of a method's settings, ``method@variant``: the rows of the ablations and the readings of credit fidelity."""

from __future__ import annotations

import dataclasses

from baselines import find_method
from eval.tables import BASELINE
from otca import presets
from otca.budget import costs_of
from otca.config import TrainConfig
from otca.errors import InputError
from otca.runs import RunSpec

SAMPLED = ("static_multi_reward", "otca")
"""Methods that the settings below are tried on."""
SETTINGS: dict[str, dict[str, object]] = {
    **{f"T{steps}": {"sampler.steps": steps} for steps in (5, 12)},
    **{f"G{g}": {"group_size": g, "prompts_per_iteration": 128 // g} for g in (4, 8, 32)},
    **{scale: {"loss.step_scale": scale} for scale in ("exact", "equal")},
}
"""Number of steps, group size at equal samples, size of each step's gradient."""
STRESSED = ("uniform_grpo", "static_multi_reward", "otca_moca", "otca", "process_credit")
"""Methods that the corrupted reward is tried on."""

VARIANTS: dict[str, dict[str, object]] = {
    # TCD: what it measures, and what its weights know
    **{f"{method}@x0_hat": {"credit.tcd_latent": "x0_hat"} for method in ("otca_tcd", "otca")},
    "otca_tcd@permuted": {"credit.tcd_control": "permuted"},
    "otca_tcd@averaged": {"credit.tcd_control": "averaged"},
    # MOCA: its exploration beside the default 0.5
    **{f"otca_moca@rho{rho:g}": {"credit.rho": rho} for rho in (0.0, 1.0)},
    # process credit: reach, completion, and the truth as credit
    "process_credit@raw": {"credit.process_shrinkage": False},
    "process_credit@decay0": {"credit.process_decay": 0.0},
    "process_credit@decay.6": {"credit.process_decay": 0.6},
    "process_credit@decay1": {"credit.process_decay": 1.0},
    "process_credit@clean": {"credit.process_completion": 1},
    "process_credit@clean-decay0": {"credit.process_completion": 1, "credit.process_decay": 0.0},
    "process_credit@clean-raw": {"credit.process_completion": 1, "credit.process_decay": 0.0, "credit.process_shrinkage": False},
    "process_credit@completion2": {"credit.process_completion": 2},
    "process_credit@whole": {"credit.process_completion": 0},
    "process_credit@early3": {"credit.process_states": 3, "credit.process_spread": "early"},
    "process_credit@even3": {"credit.process_states": 3},
    "process_credit@truth4": {"credit.process_continuations": 4, "credit.process_decay": 0.0},
    "process_credit@baseline": {"credit.process_scale": "step", "credit.process_decay": 1.0},
    # credit-sampled steps
    **{f"{m}@{n}steps": {"credit.sampled_steps": n} for m in ("otca", "otca_tcd", "process_credit") for n in (1, 3)},
    # sampling and loss
    **{f"{method}@{name}": changes for method in SAMPLED for name, changes in SETTINGS.items()},
    # one corrupted reward
    **{f"{method}@flipped": {"rewards": ["reproduce.corrupted:Flipped", "quality", "aesthetic"]} for method in STRESSED},
}

EQUAL = "equal"
"""Suffix of a variant (``flow_grpo@equal``, ``otca@3steps-equal``) that gets static weighting's network evaluations."""


def variant_settings(name: str) -> dict[str, object]:
    """Settings that a name adds to its method's own: none for a plain method. Raises InputError for an unknown variant."""
    if "@" not in name:
        return {}
    if name not in VARIANTS:
        known = ", ".join(v for v in VARIANTS if v.partition("@")[0] == name.partition("@")[0])
        raise InputError(f"unknown variant {name!r} (known of this method: {known or 'none'}); add it to reproduce/variants.py")
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
