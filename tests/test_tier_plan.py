"""The plan of a tier: costs fitted to measured runs, budgets as manifests of finished runs have them, the committed plan."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from otca.runs import Arm
from reproduce import tier_plan
from reproduce.all import arms
from reproduce.variants import named_arm


def test_seconds_are_linear_in_evaluations_and_reward_calls():
    rows = [(0, 0, 0.0, 30.0), (1000, 100, 2.3, 20.0), (2000, 100, 4.3, 10.0), (1000, 1000, 5.0, 20.0)]
    costs = pd.DataFrame(rows, columns=list(tier_plan.COSTS))
    assert tier_plan.seconds_each(costs) == pytest.approx((0.002, 0.003, 20.0))


@pytest.mark.parametrize("name", ["static_multi_reward", "process_credit", "flow_grpo", "diffusion_nft", "otca@T20"])
def test_a_planned_budget_is_what_a_run_spends(name):
    arm = named_arm("image", "quick", name, 0)
    row = tier_plan.planned(arm, 2, (0.5, 0.25, 60.0), 1)
    spent = json.loads((Path("results/image/quick") / name / "seed0/manifest.json").read_text())["budget"]
    assert {key: row[key] for key in spent} == spent
    minutes = spent["network_evaluations"] / 120 + spent["reward_calls"] / 240 + 1
    assert row["minutes"] == pytest.approx(minutes, abs=0.01) and row["core_hours"] == pytest.approx(minutes / 30, abs=0.01)


def test_the_untrained_model_costs_its_judging():
    row = tier_plan.planned(Arm("video", "cpu", "base", 0), 10, (0.5, 0.25, 60.0), 1)
    assert (row["minutes"], row["network_evaluations"], row["test_samples"]) == (1.0, 0, 350)


def test_the_committed_plan_is_of_the_runs_that_are_made():
    """And takes about eight hours of two cores."""
    rows = pd.read_csv("results/plans/cpu.csv")
    runs = Counter((arm.medium, arm.name) for arm in arms("cpu"))
    assert {(row.medium, row.method): row.seeds for row in rows.itertuples()} == runs
    assert rows["core_hours"].sum() <= 17  # about 8 hours on two cores: two rows of ten seeds were added after the plan
    for row in rows[rows["iterations"].notna()].itertuples():
        arm = named_arm(row.medium, "cpu", row.method, 0)
        assert tier_plan.planned(arm, row.seeds, (0.0, 0.0, 0.0), 1)["network_evaluations"] == row.network_evaluations
