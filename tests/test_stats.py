"""Known answers of eval.stats: closed forms, hand calculations, symmetries."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from eval.stats import bootstrap_interval, holm, iqm, paired_difference

pytestmark = pytest.mark.filterwarnings("error")

value = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))
pairs = st.lists(st.tuples(value, value), min_size=1, max_size=8)


def test_iqm_drops_a_quarter_at_each_end():
    assert iqm(range(1, 9)) == pytest.approx((3 + 4 + 5 + 6) / 4)
    assert iqm([0, 1, 2, 3, 1000]) == 2  # N = 5 drops one at each end
    assert iqm([5, 0, 1000]) == 335  # N = 3 drops nothing
    assert iqm([7]) == 7
    assert math.isnan(iqm([])) and math.isnan(iqm([1, 2, math.nan])) and math.isnan(iqm([1, 2, math.inf]))
    with pytest.raises(ValueError, match="shape"):
        iqm([[1.0, 2.0]])


def test_bootstrap_interval_known_cases():
    assert bootstrap_interval([3.0, 3.0, 3.0, 3.0]) == (3.0, 3.0)
    assert all(math.isnan(x) for v in ([], [1.0], [1.0, math.nan]) for x in bootstrap_interval(v))
    # Two values: the resampled mean is 0, ½ or 1 with probability ¼, ½, ¼, so the 2.5 % points are the extremes.
    assert bootstrap_interval([0.0, 1.0]) == (0.0, 1.0)


def test_bootstrap_interval_is_seeded_equivariant_and_near_normal_theory():
    sample = np.random.default_rng(1).standard_normal(400)
    low, high = bootstrap_interval(sample)
    assert (low, high) == bootstrap_interval(sample) != bootstrap_interval(sample, seed=1)
    assert bootstrap_interval(2 * sample + 1) == pytest.approx((2 * low + 1, 2 * high + 1))
    # Asymptotic variance of the 25 % trimmed mean of a standard normal is 1.195 / N (efficiency 0.837).
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(1.195 / 400), rel=0.1)


def test_paired_t_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, standard error 1/√3, t = 2√3 on 2 degrees of freedom, critical value 4.302653."""
    got = paired_difference([11, 22, 33], [10, 20, 30])
    half = 4.302652729911275 / math.sqrt(3)
    assert (got.n, got.diff, got.prob_improvement) == (3, 2.0, 1.0)
    assert (got.low, got.high) == pytest.approx((2 - half, 2 + half))
    t = 2 * math.sqrt(3)
    assert got.p == pytest.approx(1 - t / math.sqrt(t * t + 2))  # closed form of the t distribution with 2 degrees of freedom
    assert got.p == pytest.approx(scipy_stats.ttest_rel([11, 22, 33], [10, 20, 30]).pvalue)


def test_exact_sign_flip_by_hand():
    assert paired_difference([1, 2, 3], [0, 0, 0]).sign_flip_p == 2 / 8  # only +++ and −−− reach |6|
    # 1, 2, −3 sums to 0: every assignment is at least as extreme. −1, 2, 3 sums to 4: ±4 and ±6, so 4 of 8.
    assert paired_difference([1, 2, -3], [0, 0, 0]).sign_flip_p == 1
    assert paired_difference([-1, 2, 3], [0, 0, 0]).sign_flip_p == 4 / 8
    assert paired_difference([5], [2]).sign_flip_p == 1
    rng = np.random.default_rng(0)
    assert paired_difference(rng.random(20) + 2, rng.random(20)).sign_flip_p == 2.0**-19
    assert math.isnan(paired_difference(rng.random(21), rng.random(21)).sign_flip_p)


def test_sign_flip_agrees_with_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.random(9), rng.random(9)
    peer = scipy_stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert paired_difference(a, b).sign_flip_p == pytest.approx(peer.pvalue)


@pytest.mark.parametrize("n", [2, 5, 10])
def test_smallest_detectable_has_the_promised_power(n):
    rng = np.random.default_rng(n)
    observed = rng.standard_normal(n)
    shift = paired_difference(observed, np.zeros(n)).smallest_detectable
    noise = rng.standard_normal((40_000, n)) * observed.std(ddof=1) + shift
    t = noise.mean(1) / (noise.std(1, ddof=1) / math.sqrt(n))
    assert np.mean(np.abs(t) > scipy_stats.t.ppf(0.975, n - 1)) == pytest.approx(0.8, abs=0.01)


def test_degenerate_pairs():
    one = paired_difference([3], [1])
    assert (one.diff, one.prob_improvement) == (2, 1) and all(map(math.isnan, (one.low, one.high, one.p)))
    same = paired_difference([0.1, 0.7, 0.3], [0.1, 0.7, 0.3])
    assert (same.diff, same.low, same.high, same.p, same.sign_flip_p, same.prob_improvement) == (0, 0, 0, 1, 1, 0.5)
    constant = paired_difference([0.1 + 0.2, 0.5, 0.9], [0.2, 0.4, 0.8])  # 0.1 each, up to rounding
    assert constant.diff == pytest.approx(0.1) and constant.sign_flip_p == 2 / 8
    assert all(map(math.isnan, (constant.low, constant.high, constant.p, constant.smallest_detectable)))
    broken = paired_difference([1, math.nan], [1, 2])
    assert broken.n == 2 and all(map(math.isnan, (broken.diff, broken.p, broken.sign_flip_p, broken.prob_improvement)))
    for a, b in (([], []), ([1, 2], [1])):
        with pytest.raises(ValueError, match="same number of seeds"):
            paired_difference(a, b)


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_swapping_arms_mirrors_the_difference(pairs):
    a, b = zip(*pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ab, ba = paired_difference(a, b), paired_difference(b, a)
    mirrored = (-ba.diff, -ba.high, -ba.low, ba.p, ba.sign_flip_p, 1 - ba.prob_improvement, ba.smallest_detectable)
    got = (ab.diff, ab.low, ab.high, ab.p, ab.sign_flip_p, ab.prob_improvement, ab.smallest_detectable)
    assert got == pytest.approx(mirrored, nan_ok=True)
    assert ab.sign_flip_p >= 2.0 ** (1 - ab.n) and 0 <= ab.prob_improvement <= 1


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_interval_excludes_zero_exactly_when_p_is_below_five_percent(pairs):
    got = paired_difference(*zip(*pairs))
    if not math.isnan(got.p) and abs(got.p - 0.05) > 1e-9:
        assert (got.low > 0 or got.high < 0) == (got.p < 0.05)


def test_holm_by_hand():
    """Sorted .01, .02, .03, .6 times 4, 3, 2, 1 gives .04, .06, .06, .6; monotone: .04, .06, .06, .6."""
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.04, math.nan, 0.01]) == pytest.approx([0.04, math.nan, 0.02], nan_ok=True)
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([0.5, 1.5])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.randoms())
def test_holm_ignores_order_and_never_lowers(p, random):
    order = list(range(len(p)))
    random.shuffle(order)
    adjusted = holm(p)
    assert holm([p[i] for i in order]) == pytest.approx(adjusted[order])
    assert (adjusted >= np.asarray(p)).all() and (adjusted <= 1).all()
