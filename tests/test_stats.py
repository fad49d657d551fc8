"""Known answers of eval.stats: closed forms, hand calculations, symmetries, and rliable 1.2.0 (fixtures/rliable.json)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import eval.stats
from eval.stats import CONFIDENCE, bootstrap_interval, first_reach, holm, iqm, paired_difference, smallest_detectable

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "rliable.json").read_text())
PAIRS = [(place, name) for place, arms in RECORDED["arms"].items() for name in arms]
VALUES = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=8)


@pytest.mark.parametrize(
    "values, expected", [([], math.nan), ([2, 4, 9], 5), ([0, 1, 3, 100], 2), (range(10), 4.5), ([1, math.nan], math.nan)]
)
def test_iqm_drops_a_quarter_at_each_end(values, expected):
    assert iqm(list(values)) == pytest.approx(expected, nan_ok=True)


def test_bootstrap_interval():
    assert bootstrap_interval([1.0, 3.0]) == (1, 3)  # of two runs the ends are the runs
    assert all(map(math.isnan, (*bootstrap_interval([1.0]), *bootstrap_interval([1.0, math.inf]))))
    values = np.random.default_rng(0).normal(5, 2, 40)
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(10 * values) == pytest.approx((10 * low, 10 * high)) and bootstrap_interval(values) == (low, high)
    mean_low, mean_high = bootstrap_interval(values, trimmed=0)
    assert (mean_high - mean_low) / 2 == pytest.approx(1.96 * values.std() / math.sqrt(40), rel=0.05)


def test_paired_t_by_hand():
    """Differences 1, 2, 3: mean 2, standard error 1/√3, t(2) = 4.3027, p = 2·sf(2√3)."""
    d = paired_difference([2, 4, 6], [1, 2, 3])
    half = 4.302653 / math.sqrt(3)
    assert (d.diff, d.low, d.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-5)
    assert d.p == pytest.approx(2 * stats.t.sf(2 * math.sqrt(3), 2)) and d.prob_improvement == 1


def test_degenerate_pairs():
    same, constant = paired_difference([0.1, 0.2], [0.1, 0.2]), paired_difference([0.2, 0.3, 0.4], [0.1, 0.2, 0.3])
    assert (same.diff, same.low, same.high, same.p, same.prob_improvement) == (0, 0, 0, 1, 0.5)
    assert constant.diff == pytest.approx(0.1) and all(map(math.isnan, (constant.low, constant.high, constant.p)))
    one, broken = paired_difference([3], [2]), paired_difference([1, math.nan], [0, 0])
    assert one.diff == 1 and math.isnan(one.p) and math.isnan(broken.diff)


@given(VALUES)
def test_swapping_methods_mirrors_and_intervals_agree_with_p(pairs):
    a, b = np.array(pairs, float).T
    ab, ba = paired_difference(a, b), paired_difference(b, a)
    got, mirrored = (ab.diff, ab.low, ab.high, ab.p), (-ba.diff, -ba.high, -ba.low, ba.p)
    assert got == pytest.approx(mirrored, nan_ok=True) and ab.prob_improvement == pytest.approx(1 - ba.prob_improvement)
    if not math.isnan(ab.p) and abs(ab.p - 0.05) > 1e-9:
        assert (ab.p < 0.05) == (ab.low > 0 or ab.high < 0)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_smallest_detectable_has_the_promised_power(n):
    """By simulation: so many of 20,000 experiments with that true difference come out significant."""
    half = stats.t.ppf(0.975, n - 1) / math.sqrt(n)  # of a standard deviation of 1
    shift = smallest_detectable(half, n)
    draws = np.random.default_rng(0).normal(shift, 1, (20_000, n))
    assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert math.isnan(smallest_detectable(0, n)) and math.isnan(smallest_detectable(half, 1))


def test_holm_by_hand():
    """Sorted .01, .02, .03, .6 times 4, 3, 2, 1 gives .04, .06, .06, .6."""
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.04, math.nan, 0.01]) == pytest.approx([0.04, math.nan, 0.02], nan_ok=True)
    assert holm([0.5, 0.9]) == pytest.approx([1, 1]) and holm([]).shape == (0,)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_ignores_order_and_never_lowers(p, random):
    order = random.sample(range(len(p)), len(p))
    adjusted = holm(p)
    assert holm([p[i] for i in order]) == pytest.approx([adjusted[i] for i in order])
    assert (adjusted >= np.array(p) - 1e-15).all() and (adjusted <= 1).all()


def test_first_reach_is_linear_between_points():
    assert first_reach([0, 10, 20], [0.1, 0.3, 0.5], 0.4) == pytest.approx(15)
    assert first_reach([0, 10, 20], [0.1, 0.5, 0.2], 0.3) == pytest.approx(5)  # the first time counts
    assert first_reach([0, 10], [0.4, 0.5], 0.4) == 0 and first_reach([0, 10], [0.1, 0.2], 0.4) == math.inf


def improvement_over_all_pairs(a_N, b_M) -> float:
    """rliable's: every run of one arm paired with every run of the other; ours compares runs that share a seed."""
    return paired_difference(np.repeat(a_N, len(b_M)), np.tile(b_M, len(a_N))).prob_improvement


@pytest.mark.parametrize("place, name", PAIRS)
def test_statistics_are_rliables(place, name, monkeypatch):
    """Means and probabilities to rounding, intervals but for the Monte-Carlo error of 10,000 resamples each.

    The level at which an estimated end lies has the standard error √(p(1 − p)/R); four of those of the difference make 0.9 %. So
    rliable's ends lie between ours at 1.6 % and 3.4 %, and at 96.6 % and 98.4 %.
    """
    arm, baseline = RECORDED["arms"][place][name], RECORDED["arms"][place][RECORDED["baseline"]]
    assert iqm(arm["runs"]) == pytest.approx(arm["iqm_runs"], abs=1e-15)
    assert iqm(np.ravel(arm["skills"])) == pytest.approx(arm["iqm_skills"], abs=1e-15)
    assert improvement_over_all_pairs(arm["runs"], baseline["runs"]) == pytest.approx(arm["improvement_runs"], abs=1e-15)
    skills = [improvement_over_all_pairs(*pair) for pair in zip(np.transpose(arm["skills"]), np.transpose(baseline["skills"]))]
    assert np.mean(skills) == pytest.approx(arm["improvement_skills"], abs=1e-15)
    tail, ends = (1 - CONFIDENCE) / 2, []
    slack = 4 * math.sqrt(tail * (1 - tail) * (1 / 10_000 + 1 / RECORDED["reps"]))
    for level in (tail - slack, tail + slack):
        monkeypatch.setattr(eval.stats, "CONFIDENCE", 1 - 2 * level)
        ends += bootstrap_interval(arm["runs"])
    low, high = arm["interval_runs"]
    assert ends[0] - 1e-12 <= low <= ends[2] + 1e-12 and ends[3] - 1e-12 <= high <= ends[1] + 1e-12
