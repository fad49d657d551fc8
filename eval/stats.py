"""Statistics of a few paired seeds: an interval beside every number, a difference beside every comparison.

N is the number of runs (seeds) of one method; arrays are in seed order. A value that is NaN or infinite makes the result NaN: a
broken run is never averaged away. What N cannot support is NaN too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq

CONFIDENCE = 0.95  # coverage of every interval; one minus it is the level of every test
POWER = 0.80  # power that `smallest_detectable` asks for
TRIMMED = 0.25  # share of the values that an interquartile mean leaves out at each end


@dataclass(frozen=True)
class PairedDifference:
    """How method a differs from method b over the same seeds, in the metric's unit."""

    n: int
    diff: float  # mean of a − b
    low: float  # of the paired t interval (95 %)
    high: float
    p: float  # paired t test, two-sided
    prob_improvement: float  # share of pairs with a > b, ties half


def iqm(values_N: ArrayLike) -> float:
    """Interquartile mean: without the lowest and the highest ⌊N/4⌋ values, as in scipy and rliable; of N ≤ 3 the plain mean."""
    value_N = np.asarray(values_N, dtype=np.float64)
    return float(stats.trim_mean(value_N, TRIMMED)) if _usable(value_N, 1) else float("nan")


def bootstrap_interval(
    values_N: ArrayLike, seed: int = 0, resamples: int = 10_000, trimmed: float = TRIMMED
) -> tuple[float, float]:
    """Percentile bootstrap interval (95 %) of the interquartile mean, or of a mean trimmed otherwise (0: not): (low, high).

    Whole runs are drawn: with the same seed and N the same runs for every metric, hence jointly over objectives. Five values
    cover about 89 %, not 95 %; of 2 or 3 it runs from the lowest to the highest. (NaN, NaN) if N < 2 or a value is not finite.
    """
    value_N = np.asarray(values_N, dtype=np.float64)
    if not _usable(value_N, 2):
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
    """Compare two methods run with the same seeds; ``a_N[i]`` and ``b_N[i]`` are one pair.

    Identical methods: interval [0, 0] and p = 1. One pair, or differences all equal but not 0, leave no spread to test against:
    interval and p are NaN; spread below the rounding of the values counts as none.
    """
    a_N, b_N = np.asarray(a_N, dtype=np.float64), np.asarray(b_N, dtype=np.float64)
    n, nan = a_N.size, float("nan")
    if not (_usable(a_N, 1) and _usable(b_N, 1)):
        return PairedDifference(n, nan, nan, nan, nan, nan)
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(a_N).max(), np.abs(b_N).max())
    difference_N = np.where(np.abs(a_N - b_N) <= rounding, 0.0, a_N - b_N)
    low = high = p = nan
    if n > 1 and difference_N.std(ddof=1) > rounding:
        test = stats.ttest_1samp(difference_N, 0.0)
        (low, high), p = test.confidence_interval(CONFIDENCE), test.pvalue
    elif n > 1 and not difference_N.any():
        low, high, p = 0.0, 0.0, 1.0
    better = np.mean((difference_N > 0) + 0.5 * (difference_N == 0))
    return PairedDifference(n, float(difference_N.mean()), float(low), float(high), float(p), float(better))


def holm(p_N: ArrayLike) -> np.ndarray:
    """Holm's step-down adjustment of N p-values, in the order given; NaN (no test was possible) stays and is not counted."""
    p_N = np.asarray(p_N, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p_N))
    order = tested[np.argsort(p_N[tested], kind="stable")]
    adjusted_N = np.full(p_N.size, np.nan)
    adjusted_N[order] = np.minimum(np.maximum.accumulate(np.arange(order.size, 0, -1) * p_N[order]), 1.0)
    return adjusted_N


def smallest_detectable(half_width: float, n: int) -> float:
    """True difference that n pairs find with 80 % power at the 5 % level, from the half-width of their paired t interval."""
    if n < 2 or not half_width > 0:
        return float("nan")
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    # noncentrality at which t passes the critical value with the wanted power; it lies between 1.28 (n = 2) and 1.43 of them
    noncentrality = brentq(lambda d: stats.nct.sf(critical, n - 1, d) - POWER, critical, 1.6 * critical)
    return float(half_width * noncentrality / critical)


def first_reach(spent_N: ArrayLike, value_N: ArrayLike, target: float) -> float:
    """What was spent when a curve first came to the target, linear between its points; infinite if it never did."""
    spent_N, value_N = np.asarray(spent_N, dtype=np.float64), np.asarray(value_N, dtype=np.float64)
    above = np.flatnonzero(value_N >= target)
    if not above.size:
        return float("inf")
    i = above[0]
    if i == 0:
        return float(spent_N[0])
    share = (target - value_N[i - 1]) / (value_N[i] - value_N[i - 1])
    return float(spent_N[i - 1] + share * (spent_N[i] - spent_N[i - 1]))


def _usable(value_N: np.ndarray, least: int) -> bool:
    return value_N.size >= least and bool(np.isfinite(value_N).all())
