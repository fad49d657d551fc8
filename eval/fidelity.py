"""How far a credit agrees with the truth: pure numbers, no models.

T transitions, B trajectories in groups (one prompt each), K objectives, N continuations. The truth of a transition is what it
added to the value of the state, δ_TBK; both it and the credit are compared after centring in the group at each (t, k).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from otca.credit import group_center

AXES = ("pooled", "step", "sample")
"""pooled: over all cells; step: within a trajectory, over its steps; sample: across trajectories at a step, mean over steps."""

WORTHLESS = 0.1
"""A cell whose centred truth is below this share of the reward's standard deviation counts as worthless."""


@dataclass(frozen=True)
class Truth:
    """What each step added to the value, with squared standard errors from the spread of the continuations."""

    increment_TBK: np.ndarray  # estimated δ
    error_TBK: np.ndarray
    start_BK: np.ndarray  # estimated value of the first state
    start_error_BK: np.ndarray
    final_BK: np.ndarray  # the rewards


def truth_of(draws_SNBK: np.ndarray, final_BK: np.ndarray) -> Truth:
    """The truth from rewards of N continuations of states 0 … S−1, where state S has the final reward without spread."""
    difference_TNBK, count = _differences_TNBK(draws_SNBK, final_BK), draws_SNBK.shape[1]
    return Truth(
        increment_TBK=difference_TNBK.mean(1),
        error_TBK=difference_TNBK.var(1, ddof=1) / count,
        start_BK=draws_SNBK[0].mean(0),
        start_error_BK=draws_SNBK[0].var(0, ddof=1) / count,
        final_BK=final_BK,
    )


def _differences_TNBK(draws_SNBK: np.ndarray, final_BK: np.ndarray) -> np.ndarray:
    """What each draw says of each increment: draw n of neighbouring states shares its noise, so their difference is paired."""
    return np.diff(draws_SNBK, axis=0, append=np.broadcast_to(final_BK, (1, *draws_SNBK.shape[1:])))


def true_covariance_TKK(draws_SNBK: np.ndarray, final_BK: np.ndarray, group_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance between objectives of the centred true increments at each step, (T, K, K): without and with error.

    The error's own covariance is that of the paired differences over N; centring in a group of G keeps 1 − 1/G of it. What the
    initial noise decides is in no increment.
    """
    difference_TNBK, count = _differences_TNBK(draws_SNBK, final_BK), draws_SNBK.shape[1]
    centred_TBK = group_centred(difference_TNBK.mean(1), group_B)
    total_TKK = np.einsum("tbk,tbl->tkl", centred_TBK, centred_TBK) / len(group_B)
    spread_TNBK = difference_TNBK - difference_TNBK.mean(1, keepdims=True)
    _, of_B, size_P = np.unique(group_B, return_inverse=True, return_counts=True)
    kept_B = (1 - 1 / size_P[of_B]) / (count * (count - 1) * len(group_B))
    error_TKK = np.einsum("tnbk,tnbl,b->tkl", spread_TNBK, spread_TNBK, kept_B, optimize=True)
    return total_TKK - error_TKK, total_TKK


def group_centred(value_XBK: np.ndarray, group_B: np.ndarray) -> np.ndarray:
    """Values less the mean of their group, along axis 1 (`credit.group_center`)."""
    group = torch.tensor(group_B)
    return np.stack([group_center(torch.tensor(value_BK), group).numpy() for value_BK in value_XBK])


def resampled_counts(groups: int, resamples: int, seed: int = 0) -> np.ndarray:
    """How often each group is drawn in each bootstrap resample: (R, groups); row 0 is the data themselves."""
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    return np.concatenate([np.ones((1, groups), drawn.dtype), drawn])


def reliability_RK(truth: Truth, group_B: np.ndarray, counts_RP: np.ndarray) -> np.ndarray:
    """Share of the variance of the centred increments that is not error, over all cells: (R, K); row 0 is the estimate.

    Centring in a group of G keeps 1 − 1/G of an error's variance.
    """
    total_PK = _group_sums(np.square(group_centred(truth.increment_TBK, group_B)).sum(0), group_B)
    _, size_P = np.unique(group_B, return_counts=True)
    noise_PK = _group_sums(truth.error_TBK.sum(0), group_B) * (1 - 1 / size_P[:, None])
    return 1 - (counts_RP @ noise_PK) / (counts_RP @ total_PK)


def initial_noise_share_RK(truth: Truth, group_B: np.ndarray, counts_RP: np.ndarray) -> np.ndarray:
    """Share of a reward's variance within its group that the initial noise decides, less the estimate's error: (R, K)."""
    _, size_P = np.unique(group_B, return_counts=True)
    start_PK = _group_sums(np.square(group_centred(truth.start_BK[None], group_B)[0]), group_B)
    start_PK -= _group_sums(truth.start_error_BK, group_B) * (1 - 1 / size_P[:, None])
    total_PK = _group_sums(np.square(group_centred(truth.final_BK[None], group_B)[0]), group_B)
    return (counts_RP @ start_PK) / (counts_RP @ total_PK)


def correlations_RK(credit_TBK: np.ndarray, truth: Truth, group_B: np.ndarray, counts_RP: np.ndarray, axis: str) -> np.ndarray:
    """Correlation of a credit with the truth along one of `AXES`: (R, K); NaN where the credit does not vary along it.

    Not corrected for the truth's own unreliability, which lowers every correlation by the same factor, √reliability.
    """
    x_TBK = group_centred(np.broadcast_to(credit_TBK, truth.increment_TBK.shape), group_B)
    y_TBK = group_centred(truth.increment_TBK, group_B)
    if axis == "step":
        x_TBK, y_TBK = x_TBK - x_TBK.mean(0), y_TBK - y_TBK.mean(0)
    x_TBK = np.where(np.abs(x_TBK) < 1e-7 * (np.abs(credit_TBK).max() + 1e-30), 0.0, x_TBK)  # rounding is no variation
    if axis != "sample":
        x_TBK, y_TBK = x_TBK.reshape(1, -1, x_TBK.shape[2]), y_TBK.reshape(1, -1, y_TBK.shape[2])
        group_B = np.tile(group_B, truth.increment_TBK.shape[0])
    products = [np.stack([_group_sums(cells, group_B) for cells in both]) for both in (x_TBK * y_TBK, x_TBK**2, y_TBK**2)]
    xy_TRK, xx_TRK, yy_TRK = (np.einsum("rp,tpk->trk", counts_RP, sums_TPK) for sums_TPK in products)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy_TRK / np.sqrt(xx_TRK * yy_TRK)).mean(0)


def worthless_TBK(truth: Truth, group_B: np.ndarray) -> np.ndarray:
    """Which cells are worthless: bool (T, B, K)."""
    return np.abs(group_centred(truth.increment_TBK, group_B)) < WORTHLESS * truth.final_BK.std(0)


def misallocated_share_RK(credit_TBK: np.ndarray, truth: Truth, group_B: np.ndarray, counts_RP: np.ndarray) -> np.ndarray:
    """Share of a credit's absolute size that lies on worthless cells: (R, K)."""
    size_TBK = np.abs(group_centred(np.broadcast_to(credit_TBK, truth.increment_TBK.shape), group_B))
    misallocated_PK = _group_sums((size_TBK * worthless_TBK(truth, group_B)).sum(0), group_B)
    with np.errstate(invalid="ignore"):
        return (counts_RP @ misallocated_PK) / (counts_RP @ _group_sums(size_TBK.sum(0), group_B))


def profile_RTK(
    value_TBK: np.ndarray, group_B: np.ndarray, counts_RP: np.ndarray, error_TBK: np.ndarray | float = 0.0
) -> np.ndarray:
    """Root mean square of the centred values at each step, scaled to root mean square 1 over the steps: (R, T, K).

    ``error_TBK``, the squared standard errors of the values, is taken off first (to no less than 0).
    """
    _, size_P = np.unique(group_B, return_counts=True)
    square_TBK = np.square(group_centred(value_TBK, group_B))
    error_TBK = np.broadcast_to(error_TBK, square_TBK.shape)
    sums_TPK = np.stack([_group_sums(cells, group_B) for cells in square_TBK])
    sums_TPK = sums_TPK - np.stack([_group_sums(cells, group_B) for cells in error_TBK]) * (1 - 1 / size_P[:, None])
    square_RTK = np.einsum("rp,tpk->rtk", counts_RP, sums_TPK).clip(min=0)
    with np.errstate(invalid="ignore"):
        return np.sqrt(square_RTK / square_RTK.mean(1, keepdims=True))


def interval(value_R: np.ndarray) -> tuple[float, float, float]:
    """Estimate and 95 % percentile interval of resampled values whose first one is the estimate; NaN if that is."""
    if not np.isfinite(value_R[0]):
        return float("nan"), float("nan"), float("nan")
    low, high = np.nanpercentile(value_R[1:], [2.5, 97.5])
    return float(value_R[0]), float(low), float(high)


def _group_sums(value_BK: np.ndarray, group_B: np.ndarray) -> np.ndarray:
    """Sums over the members of each group: (P, K)."""
    return np.stack([value_BK[group_B == group].sum(0) for group in np.unique(group_B)])
