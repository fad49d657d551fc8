"""eval.plot_outcomes: fronts, gains and profiles worked by hand, and the same bytes twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.plot_outcomes import (
    metric_gains,
    pareto_front,
    performance_profile,
    reward_gains,
    rewards_against,
    skill_profiles,
    trade_offs,
)
from eval.tables import ROW_COLUMNS, collect
from reproduce.figures import draw_outcomes
from tests.test_plots import words

PUBLISHED = Path(__file__).parent.parent / "results"


def rows_of(values):
    """Rows as `collect` gives them: (method, metric) → values of seeds 0, 1, …"""
    rows = [(m, s, k, v, 0, 0, "") for (m, k), of_seed in values.items() for s, v in enumerate(of_seed)]
    return pd.DataFrame(rows, columns=list(ROW_COLUMNS))


ROWS = rows_of(
    {
        ("base", "alignment"): (0.5, 0.6, 0.7),
        ("base", "quality"): (0.4, 0.4, 0.4),
        ("base", "accuracy"): (0.3, 0.4, 0.5),
        ("base", "accuracy/counting"): (0.2, 0.3, 0.4),
        ("base", "accuracy/colors"): (0.4, 0.5, 0.6),
        ("base", "kernel_distance"): (0.01, 0.02, 0.03),
        ("otca", "alignment"): (0.7, 0.9),
        ("otca", "quality"): (0.4, 0.3),
        ("otca", "accuracy"): (0.2, 0.4),
        ("otca", "accuracy/counting"): (0.1, 0.5),
        ("otca", "accuracy/colors"): (0.3, 0.9),
        ("otca", "kernel_distance"): (0.03, 0.01),
    }
)


def test_the_front_is_what_no_other_point_dominates():
    """(1, 1) is beaten by (2, 1) and (2, 3); equal points do not beat one another; the extremes stay."""
    points = np.array([[1, 1], [2, 1], [2, 3], [2, 3], [0, 4], [5, 0]])
    assert pareto_front(points).tolist() == [False, False, True, True, True, True]
    assert pareto_front(np.array([[1, 2, 3], [1, 2, 4]])).tolist() == [False, True]


def test_gains_are_paired_and_in_deviations_of_the_untrained_model():
    """Alignment +.2 and +.3 at deviation .1, quality 0 and −.1 at .2: means 1 and 1.25, over the two seeds that both have."""
    gains = reward_gains(ROWS, {"alignment": 0.1, "quality": 0.2})
    assert list(gains) == ["otca"] and gains["otca"].to_dict() == pytest.approx({0: 1.0, 1: 1.25})
    assert metric_gains(ROWS, "accuracy")["otca"].to_dict() == pytest.approx({0: -0.1, 1: 0.0})
    assert metric_gains(ROWS, "kernel_distance")["otca"].to_dict() == pytest.approx({0: -0.02, 1: 0.01})  # lower is better


def test_a_profile_is_the_share_of_scores_above_each_level():
    """.1 .5 .3 .9: strictly above 0, .1, .4, .9 are 4, 3, 2 and 0 of 4. Two runs: the band is one run or the other."""
    share_X, low_X, high_X = performance_profile(np.array([[0.1, 0.5], [0.3, 0.9]]), np.array([0, 0.1, 0.4, 0.6, 0.9]))
    assert share_X.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert low_X.tolist() == [1, 0.5, 0.5, 0, 0] and high_X.tolist() == [1, 1, 0.5, 0.5, 0]
    share_X, low_X, _ = performance_profile(np.array([[0.1, 0.5]]), np.array([0.2]))
    assert share_X.tolist() == [0.5] and np.isnan(low_X).all()


def test_skills_of_a_run_are_drawn_together():
    """Runs that are right in all of 50 skills or in none: drawn together the band is as wide as for one skill."""
    scores_NM = np.repeat(np.array([[0.0], [1.0], [0.0], [1.0]]), 50, axis=1)
    many, one = (performance_profile(scores, np.array([0.5])) for scores in (scores_NM, scores_NM[:, :1]))
    assert [float(part[0]) for part in many] == [float(part[0]) for part in one] == [0.5, 0, 1]


DRAWINGS = {
    "trade-offs": lambda stem: trade_offs(ROWS, ["alignment", "quality"], stem),
    "rewards-accuracy": lambda stem: rewards_against(ROWS, "accuracy", {"alignment": 0.1, "quality": 0.2}, stem),
    "profiles": lambda stem: skill_profiles(ROWS, "accuracy", stem),
}
CAPTION = {
    "trade-offs": "Cross: mean over seeds and lowest to highest of 2 or 3 seeds; dots: seeds.",
    "rewards-accuracy": "Cross: mean over seeds and lowest to highest of 2 seeds; dots: seeds.",
    "profiles": "Band, over whole seeds: lowest to highest of 2 or 3 seeds; too narrow",
}
SAID = {
    "trade-offs": ("otca", "base", "Alignment →", "Quality →"),
    "rewards-accuracy": ("otca", "rewards and accuracy rise", "gain in accuracy over the untrained model →"),
    "profiles": ("otca", "accuracy in a skill, τ →"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_are_the_same_bytes_twice(name, tmp_path):
    for copy in ("a", "b"):
        DRAWINGS[name](tmp_path / copy)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in SAID[name])
    assert CAPTION[name] in words(drawn)


def test_what_rows_lack_is_left_out(tmp_path):
    """No second objective, no held-out metric, no skills, no untrained model, one seed: fewer figures, no complaint."""

    def drawn(rows, name):
        draw_outcomes(rows, PUBLISHED / "image/quick", "accuracy", tmp_path / name, "-image")
        folder = tmp_path / name
        return {path.name for path in folder.iterdir()} if folder.exists() else set()

    rows = collect(PUBLISHED, "image", "quick", ("base", "otca"))
    assert drawn(rows[~rows["metric"].str.match("quality|aesthetic|accuracy/")], "one") == {
        "rewards-accuracy-image.png",
        "rewards-accuracy-image.svg",
    }
    assert drawn(rows[rows["metric"].isin(["clip_score", "diversity"])], "none") == set()
    few = rows[(rows["method"] != "base") & (rows["seed"] == 0) & ~rows["metric"].str.startswith("accuracy")]
    assert drawn(few, "alone") == {"trade-offs-image.png", "trade-offs-image.svg"}
