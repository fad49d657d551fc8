"""The tuning grids: arms of their own, tuning seeds only, rows that say what was changed."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from eval.evaluate import write_rows
from otca import presets
from otca.presets import SEEDS
from otca.runs import RunSpec
from reproduce import tune
from reproduce.runner import arm_config


@pytest.mark.parametrize("grid", tune.GRIDS)
def test_every_arm_is_a_run_of_its_own_on_a_tuning_seed(grid):
    arms = tune.arms("image", "quick", grid)
    assert len({arm.path for arm in arms}) == len(arms)
    assert min(arm.seed for arm in arms) > max(SEEDS.values())
    configs = [arm_config(arm) for arm in arms if arm.method != "base"]
    assert all(configs.count(config) == 1 for config in configs), "two arms train the same"
    assert {(arm.method, arm.seed) for arm in arms if arm.method == "base"} == {("base", arm.seed) for arm in arms}


def test_every_method_has_the_same_grid():
    for modality, methods in tune.METHODS.items():
        arms = [arm for arm in tune.arms(modality, "cpu", "methods") if arm.method != "base"]
        tried = {method: sorted((a.seed, *a.settings) for a in arms if a.method == method) for method in methods}
        assert len({str(grid) for grid in tried.values()}) == 1 and len(arms) == len(methods) * len(tune.FACTORS[modality])


def test_the_winner_has_the_highest_product_of_mean_rewards():
    first = {"otca": [0.4, 0.5, 0.5, 0.4, 0.4, 0.6], "coca": [0.3, 0.2, 0.1] * 2}
    second = {"otca": [0.9, 0.7, 0.7, 0.9, 0.7, 0.7], "coca": [0.1, 0.2, 0.9] * 2}
    rows = [("base", "{}", 0.9, 0.9, 0.9)]
    for method in first:
        rates = [json.dumps({"optimizer.learning_rate": rate}) for rate in (1e-4, 2e-4, 4e-4)] * 2
        rows += [(method, rate, a, b, 1 - b) for rate, a, b in zip(rates, first[method], second[method])]
    rows = pd.DataFrame(rows, columns=["method", "settings", "alignment", "quality", "judge_correct"])
    # otca: .40 × .90, .45 × .70, .55 × .70; coca: .30 × .10, .20 × .20, .10 × .90
    assert tune.winners(rows) == {"otca": 4e-4, "coca": 4e-4}


@pytest.mark.parametrize("name", presets.TUNED)
def test_rates_are_the_winners_of_the_published_rows(name):
    rows = pd.read_csv(f"results/tuning/{name.split('/')[0]}-methods.csv")
    chosen = {method: settings["optimizer.learning_rate"] for method, settings in presets.TUNED[name].items()}
    assert chosen == tune.winners(rows) and set(chosen) == set(tune.METHODS[name.split("/")[0]])


def test_a_row_has_the_means_and_the_settings(tmp_path):
    arm = RunSpec("image", "quick", "otca", 101, "x", (("iterations", 7), ("reward_weights", [4.0, 1.0, 1.0])))
    items = {
        "prompt_id": ["a", "b"],
        "alignment": [0.0, 1.0],
        "quality": [0.5, 0.7],
        "aesthetic": 1.0,
        "judge_correct": [1.0, 0.0],
    }
    write_rows(pd.DataFrame(items), tmp_path / "scores.csv.gz")
    (tmp_path / "manifest.json").write_text(json.dumps({"budget": {"network_evaluations": 70, "reward_calls": 30}}))
    (tmp_path / "cost.json").write_text(json.dumps({"train_seconds": 8.5, "evaluate_seconds": 2.0, "hardware": "x"}))
    row = tune.read_run(tmp_path, arm)
    assert json.loads(row.pop("settings")) == {"iterations": 7, "reward_weights": [4.0, 1.0, 1.0]}
    expected = {"alignment": 0.5, "quality": pytest.approx(0.6), "aesthetic": 1.0, "judge_correct": 0.5}
    expected |= {"network_evaluations": 70, "reward_calls": 30, "train_seconds": 8.5, "evaluate_seconds": 2.0}
    assert row == {"method": "otca", "seed": 101, "variant": "x", **expected}
