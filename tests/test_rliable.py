"""eval.stats against rliable 1.2.0 on the same accuracies (fixtures/rliable.json, made by fixtures/record_rliable.py).

What rliable defines differently:

- Its probability of improvement compares every run of one arm with every run of the other (Mann-Whitney), skill by skill, and
  averages; ours compares the runs that share a seed. Over all pairs ours gives rliable's value; ties are half in both.
- Its bootstrap draws the runs of each skill apart; ours draws whole runs, since the skills of a run are correlated. With one
  value a run they are the same, and that is what is compared.
- Median over skills and optimality gap are recorded, and used nowhere here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

import eval.stats
from eval.stats import CONFIDENCE, bootstrap_interval, iqm, paired_difference

ROOT = Path(__file__).parent.parent
RECORDED = json.loads((ROOT / "tests" / "fixtures" / "rliable.json").read_text())
ARMS = [(place, name) for place, arms in RECORDED["arms"].items() for name in arms]


@pytest.fixture(params=ARMS, ids=[f"{place}-{name}" for place, name in ARMS])
def pair(request):
    """An arm, and the baseline of its place."""
    place, name = request.param
    return RECORDED["arms"][place][name], RECORDED["arms"][place][RECORDED["baseline"]]


def improvement_over_all_pairs(a_N, b_M) -> float:
    """Our probability of improvement, every run of one arm paired with every run of the other."""
    return paired_difference(np.repeat(a_N, len(b_M)), np.tile(b_M, len(a_N))).prob_improvement


def test_interquartile_mean_and_mean_are_rliables(pair):
    arm, _ = pair
    assert iqm(arm["runs"]) == pytest.approx(arm["iqm_runs"], abs=1e-15)
    assert iqm(np.ravel(arm["skills"])) == pytest.approx(arm["iqm_skills"], abs=1e-15)
    assert np.mean(arm["skills"]) == pytest.approx(arm["mean"], abs=1e-15)


def test_probability_of_improvement_over_all_pairs_is_rliables(pair):
    arm, baseline = pair
    assert improvement_over_all_pairs(arm["runs"], baseline["runs"]) == pytest.approx(arm["improvement_runs"], abs=1e-15)
    by_skill = zip(np.transpose(arm["skills"]), np.transpose(baseline["skills"]))
    assert np.mean([improvement_over_all_pairs(a, b) for a, b in by_skill]) == pytest.approx(arm["improvement_skills"], abs=1e-15)


def test_pairs_by_seed_are_another_question():
    """Of two seeds the untrained model is better in one and equal in the other: 3/4; over all four pairs it is 3½/4."""
    base, static = (RECORDED["arms"]["image/quick"][name] for name in ("base", "static_multi_reward"))
    assert paired_difference(base["runs"], static["runs"]).prob_improvement == 0.75
    assert base["improvement_runs"] == 0.875


def test_bootstrap_interval_is_rliables_but_for_monte_carlo_error(pair, monkeypatch):
    """Both estimate the 2.5 % and 97.5 % points of one distribution from 10,000 resamples each.

    The level at which an estimate lies has the standard error √(p(1 − p)/R); four of those of the difference make 0.9 %. So
    rliable's ends must lie between our points at 1.6 % and 3.4 %, and between those at 96.6 % and 98.4 %.
    """
    arm, _ = pair
    tail = (1 - CONFIDENCE) / 2
    slack = 4 * math.sqrt(tail * (1 - tail) * (1 / 10_000 + 1 / RECORDED["reps"]))
    ends = []
    for level in (tail - slack, tail + slack):
        monkeypatch.setattr(eval.stats, "CONFIDENCE", 1 - 2 * level)
        ends.append(bootstrap_interval(arm["runs"]))
    (low_wide, high_wide), (low_narrow, high_narrow) = ends
    low, high = arm["interval_runs"]
    assert low_wide - 1e-12 <= low <= low_narrow + 1e-12 and high_narrow - 1e-12 <= high <= high_wide + 1e-12


def test_two_three_and_ten_runs_are_among_what_is_compared():
    sizes = {place: {len(arm["runs"]) for arm in arms.values()} for place, arms in RECORDED["arms"].items()}
    cpu = {"image/cpu": {10}, "video/cpu": {10}}
    assert sizes == {"image/quick": {2}, "video/quick": {2}, "image/study": {3}, "made up": {10}} | cpu
