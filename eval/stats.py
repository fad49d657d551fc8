"""Statistics of a few paired seeds: an interval beside every number, a difference beside every comparison.

N is the number of runs (seeds) of one arm; arrays are in seed order. A value that is NaN or infinite makes the result NaN
(a broken run is never averaged away), and what N cannot support is NaN too: nothing here warns or draws unseeded numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

CONFIDENCE = 0.95
"""Coverage of every interval; one minus it is the level of every test."""

POWER = 0.80
"""Power that `PairedDifference.smallest_detectable` asks for."""

TRIMMED = 0.25
"""Share of the values that an interquartile mean leaves out at each end."""

MAX_EXACT_PAIRS = 20
"""Pairs up to which all 2^N sign assignments are enumerated (at 20: half a million sums)."""


@dataclass(frozen=True)
class PairedDifference:
    """How arm a differs from arm b over the same seeds, in the metric's unit.

    n: pairs; diff: mean of a − b; low, high: paired t interval (95 %); p: paired t test, two-sided; sign_flip_p: exact
    sign-flip test of the mean, two-sided, never below 2^(1−n), NaN beyond 20 pairs; prob_improvement: share of pairs with
    a > b, ties half, in [0, 1]; smallest_detectable: true difference that this n would have found with 80 % power, were the
    standard deviation of the differences the observed one.
    """

    n: int
    diff: float
    low: float
    high: float
    p: float
    sign_flip_p: float
    prob_improvement: float
    smallest_detectable: float


def iqm(values_N: ArrayLike) -> float:
    """Interquartile mean: the mean without the lowest and the highest ⌊N/4⌋ values (the 25 % trimmed mean).

    So N ≤ 3 trims nothing and is the plain mean; N = 4 to 7 drops one value at each end; N = 10 drops two. Fractions of a
    value are not weighted, as in scipy and rliable (Agarwal et al. 2021). NaN if N = 0 or a value is not finite.
    """
    value_N = _vector(values_N)
    if value_N.size == 0 or not np.isfinite(value_N).all():
        return float("nan")
    return float(stats.trim_mean(value_N, TRIMMED))


def bootstrap_interval(
    values_N: ArrayLike, seed: int = 0, resamples: int = 10_000, trimmed: float = TRIMMED
) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the interquartile mean, or of a mean trimmed otherwise (0: not): (low, high).

    Whole runs are drawn: with the same seed and N the same runs are drawn for every metric, hence jointly over objectives.
    Five values cover about 89 %, not 95 %. (NaN, NaN) if N < 2 or a value is not finite.
    """
    value_N = _vector(values_N)
    if value_N.size < 2 or not np.isfinite(value_N).all():
        return float("nan"), float("nan")
    result = stats.bootstrap(
        (value_N,),
        lambda sample, axis: stats.trim_mean(sample, trimmed, axis=axis),
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def paired_difference(a_N: ArrayLike, b_N: ArrayLike) -> PairedDifference:
    """Compare two arms run with the same seeds; ``a_N[i]`` and ``b_N[i]`` are one pair.

    One pair: only diff and prob_improvement say something (sign_flip_p is 1). Identical arms: interval [0, 0] and p = 1.
    Differences that are all equal but not 0 leave no spread to test against: interval, p and smallest_detectable are NaN,
    and the sign-flip test decides alone. Spread below the rounding of the values counts as none.
    Raises ValueError on no pairs or unequal lengths; a value that is not finite makes everything but n NaN.
    """
    a_N, b_N = _vector(a_N), _vector(b_N)
    if a_N.size != b_N.size or a_N.size == 0:
        raise ValueError(f"paired arms need the same number of seeds, at least 1; got {a_N.size} and {b_N.size}")
    n, nan = a_N.size, float("nan")
    if not (np.isfinite(a_N).all() and np.isfinite(b_N).all()):
        return PairedDifference(n, nan, nan, nan, nan, nan, nan, nan)
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(a_N).max(), np.abs(b_N).max())
    difference_N = a_N - b_N
    difference_N[np.abs(difference_N) <= rounding] = 0.0
    diff = float(difference_N.mean())
    deviation = float(difference_N.std(ddof=1)) if n > 1 else nan
    if n > 1 and deviation > rounding:
        low, high, p, detectable = _paired_t(diff, deviation, n)
    elif n > 1 and diff == 0:
        low, high, p, detectable = 0.0, 0.0, 1.0, nan
    else:
        low, high, p, detectable = nan, nan, nan, nan
    return PairedDifference(
        n=n,
        diff=diff,
        low=low,
        high=high,
        p=p,
        sign_flip_p=_sign_flip_p(difference_N),
        prob_improvement=float(np.mean((difference_N > 0) + 0.5 * (difference_N == 0))),
        smallest_detectable=detectable,
    )


def holm(p_N: ArrayLike) -> np.ndarray:
    """Holm's step-down adjustment of N p-values, (N,) float64 in [0, 1], in the order given.

    NaN marks a test that could not be made: it stays NaN and does not count among the N. Raises ValueError outside [0, 1].
    """
    p_N = _vector(p_N)
    tested = np.flatnonzero(~np.isnan(p_N))
    if ((p_N[tested] < 0) | (p_N[tested] > 1)).any():
        raise ValueError(f"p-values must lie in [0, 1], got {p_N.tolist()}")
    order = tested[np.argsort(p_N[tested], kind="stable")]
    factor = np.arange(order.size, 0, -1)
    adjusted_N = np.full(p_N.size, np.nan)
    adjusted_N[order] = np.minimum(np.maximum.accumulate(factor * p_N[order]), 1.0)
    return adjusted_N


def smallest_detectable(half_width: float, n: int) -> float:
    """True difference that n pairs find with 80 % power at the 5 % level, from the half-width of their paired t interval.

    Same unit as ``half_width``, which carries the observed spread. NaN if n < 2 or if the half-width is 0 or NaN (no spread).
    """
    if n < 2 or not half_width > 0:
        return float("nan")
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    # Noncentrality at which |t| passes the critical value with the wanted power; the far tail adds nothing at 80 %, and the
    # root lies between 1.28 (n = 2) and 1.43 (n → ∞) critical values.
    noncentrality = brentq(lambda d: stats.nct.sf(critical, n - 1, d) - POWER, critical, 1.6 * critical)
    return float(half_width * noncentrality / critical)


def _paired_t(diff: float, deviation: float, n: int) -> tuple[float, float, float, float]:
    """Interval, p-value and smallest detectable difference from the mean and standard deviation of n ≥ 2 differences."""
    error = deviation / np.sqrt(n)
    half_width = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * error)
    p = float(2 * stats.t.sf(abs(diff) / error, n - 1))
    return diff - half_width, diff + half_width, p, smallest_detectable(half_width, n)


def _sign_flip_p(difference_N: np.ndarray) -> float:
    """Share of the 2^N sign assignments whose mean is at least as far from 0 as the observed one."""
    if difference_N.size > MAX_EXACT_PAIRS:
        return float("nan")
    sums = difference_N[:1]  # the other half of the assignments mirrors this one
    for difference in difference_N[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    slack = 1e-12 * np.abs(difference_N).sum()
    return float(np.mean(np.abs(sums) >= abs(difference_N.sum()) - slack))


def _vector(values: ArrayLike) -> np.ndarray:
    value_N = np.array(values, dtype=np.float64)
    if value_N.ndim != 1:
        raise ValueError(f"expected one value a seed, shape (N,); got shape {value_N.shape}")
    return value_N
