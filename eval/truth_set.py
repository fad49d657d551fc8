"""The truth set: a base model's trajectories and what each step was truly worth, to test a credit rule without training.

One safetensors file a modality: ``latents_SBD`` (float16), ``reward_BK``, ``group_B`` (samples of one prompt), ``sigma_S``, the
Monte-Carlo truth ``increment_TBK`` with its squared standard errors ``error_TBK``, and ``start_BK``, ``start_error_BK``. T counts
the stochastic steps, whose states are the first T + 1 of S. ``credit/<method>`` is what known methods give each step (T, B, K).
Its metadata (`FACTS`) names the objectives and the continuations of a state. Read it with `load`, or in any language. A rule is
a Python file with one function

    def credit(latents_SBD, reward_BK, group_B): ...    # numpy → (T, B, K), or (T, B) where it credits one sum

which says how much of each sample's reward its step t earned, signed. It never sees the truth.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from eval.fidelity import AXES, Truth, correlations_RK, interval, misallocated_share_RK, reliability_RK, resampled_counts
from otca.errors import InputError, one_line
from otca.files import write_atomic

MAX_BYTES = 5_000_000
TRUTH = ("increment_TBK", "error_TBK", "start_BK", "start_error_BK", "reward_BK")
"""Names of the fields of `Truth` in a truth set."""
FACTS = "truth_set"  # the one entry of a file's metadata, as JSON: several would be in no fixed order
RESAMPLES = 1000
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays by name, and the metadata. Raises InputError for what is no truth set."""
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[FACTS])  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"truth set {path}: {error}; make one with python -m reproduce.credit_fidelity") from error


def truth_of(arrays: dict[str, np.ndarray]) -> Truth:
    """The truth in a truth set's arrays."""
    return Truth(*(arrays[name].astype(float) for name in TRUTH))


def write(
    path: Path,
    latents_SB: np.ndarray,
    sigma_S: np.ndarray,
    group_B: np.ndarray,
    truth: Truth,
    metadata: dict[str, str],
    credits: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a truth set, with the ``credits`` (T, B, K) of known methods. Raises InputError where it exceeds `MAX_BYTES`."""
    flat_SBD = latents_SB.reshape(*latents_SB.shape[:2], -1)
    arrays = {"latents_SBD": flat_SBD.astype(np.float16), "group_B": group_B.astype(np.int32), "sigma_S": sigma_S}
    arrays |= dict(zip(TRUTH, vars(truth).values())) | {f"credit/{name}": credit for name, credit in (credits or {}).items()}
    small = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in arrays.items()}
    content = save({n: np.ascontiguousarray(array) for n, array in small.items()}, {FACTS: json.dumps(metadata)})
    if len(content) > MAX_BYTES:
        raise InputError(f"truth set {path}: {len(content):,} bytes, more than {MAX_BYTES:,}; take fewer trajectories")
    write_atomic(path, content)


def read_rule(path: Path) -> Rule:
    """The function ``credit`` of a Python file, which is run."""
    if not path.is_file():
        raise InputError(f"rule {path}: no such file; give a Python file that defines credit(latents_SBD, reward_BK, group_B)")
    try:
        rule = runpy.run_path(str(path)).get("credit")
    except (Exception, SystemExit) as error:  # whatever a foreign file raises
        raise InputError(f"rule {path} cannot be run ({type(error).__name__}: {one_line(error)}); mend it") from error
    if not callable(rule):
        raise InputError(f"rule {path} defines no function credit(latents_SBD, reward_BK, group_B)")
    return rule


def score(rule: Rule, path: Path) -> pd.DataFrame:
    """One row an objective: correlation on each of `AXES`, share of credit on worthless steps, 95 % intervals over prompts.

    ``best`` is what the truth's own reliability lets a perfect rule reach.
    """
    arrays, metadata = load(path)
    latents_SBD, reward_BK, group_B = arrays["latents_SBD"].astype(np.float32), arrays["reward_BK"], arrays["group_B"]
    shape = arrays["increment_TBK"].shape
    credit = np.asarray(rule(latents_SBD, reward_BK, group_B), dtype=float)
    credit_TBK = credit[..., None] if credit.ndim == 2 else credit
    if credit_TBK.shape not in (shape, (*shape[:2], 1)) or not np.isfinite(credit_TBK).all():
        fault = "credit that is not finite" if credit_TBK.shape in (shape, (*shape[:2], 1)) else f"credit of shape {credit.shape}"
        raise InputError(f"the rule gives {fault}; {path} asks for finite numbers (T, B, K) = {shape}, or (T, B)")
    truth = truth_of(arrays)
    counts_RP = resampled_counts(len(np.unique(group_B)), RESAMPLES)
    measured = {axis: correlations_RK(credit_TBK, truth, group_B, counts_RP, axis) for axis in AXES}
    measured["worthless_share"] = misallocated_share_RK(credit_TBK, truth, group_B, counts_RP)
    best_K = np.sqrt(reliability_RK(truth, group_B, counts_RP)[0].clip(min=0))
    rows = []
    for k, objective in enumerate(metadata["objectives"].split(",")):
        cells = {name: interval(value_RK[:, k]) for name, value_RK in measured.items()}
        row = {name: estimate for name, (estimate, _, _) in cells.items()}
        bounds = {f"{name}_{end}": cells[name][i] for name in cells for i, end in ((1, "low"), (2, "high"))}
        rows.append({"objective": objective, **row, "best": best_K[k], **bounds})
    return pd.DataFrame(rows)
