"""Gates: what they read from runs and truths of known content, and what they write."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from reproduce import gate
from reproduce.gate import SEEDS, Entry, Gate

GATE = Gate("image", 1, 2, 4)
REWARDS = ("alignment", "quality", "aesthetic")


def test_an_entry_holds_at_its_goal():
    assert Entry(0.6, "", 0.6).holds and not Entry(0.59, "", 0.6).holds and Entry(-9, "").holds
    assert Entry(0.4, "", 0.4, below=True).holds and not Entry(0.41, "", 0.4, below=True).holds


def test_a_gate_replaces_its_own_entries_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gate.write("image", "credit", {"old": Entry(1, "x")})
    gate.write("image", "judges", {"kept": Entry(1, "x")})
    gate.write("image", "credit", {"new": Entry(0.25, "share", 0.6)})
    found = json.loads((tmp_path / "results/gates/image.json").read_text())
    assert list(found) == ["judges/kept", "credit/new"]
    assert found["credit/new"].pop("hardware")
    assert found["credit/new"] == {"value": 0.25, "unit": "share", "goal": 0.6, "holds": False}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs of known rows: the base at accuracy .3 and reward 1 ± .5, what is trained .3 (oracle .4 ± .01) and 1 above it."""

    def made(self, tier, names, seeds=SEEDS, iterations=0):
        out = {}
        for name in names:
            out[name] = [tmp_path / tier / name / str(seed) for seed in seeds]
            for number, run in enumerate(out[name]):
                run.mkdir(parents=True, exist_ok=True)
                rise = {"base": 0.0, "process_credit@truth4": 0.4 + 0.01 * (number - 1)}.get(name, 0.3)
                correct = np.arange(100) < 100 * (0.3 + rise)
                reward = 1 + np.tile([-0.5, 0.5], 50) + (name != "base")
                scores = {"judge_correct": correct} | dict.fromkeys(REWARDS, reward)
                pd.DataFrame(scores).to_csv(run / "scores.csv.gz", index=False)
                means = {f"mean_{name}": [1.0, 0.9, 2.0] for name in REWARDS}
                pd.DataFrame(means).to_csv(run / "validation.csv", index=False)
                pd.DataFrame({"total": [3.0 + number] * 9 + [1200.0]}).to_csv(run / "timing.csv", index=False)
                (run / "cost.json").write_text(json.dumps({"train_seconds": 600 + number, "evaluate_seconds": 30}))
        return out

    monkeypatch.setattr(Gate, "runs", made)


def test_learning_is_read_from_the_runs(runs):
    """A validation at .2 standard deviations below the base fails the gate that everything else passes.

    The slowest seed's iterations take 5 s; one of 20 minutes, in which the run was paused, does not count.
    """
    found = gate.learns(GATE)
    assert found["accuracy_gain"].value == pytest.approx(0.3) and found["rise_quality"].value == pytest.approx(2, rel=0.02)
    assert found["minutes"].value == pytest.approx(5 * gate.LEARNS_ITERATIONS / 60) and found["minutes"].holds
    assert found["lowest_reward"].value == pytest.approx(-0.2, rel=0.02)
    assert [name for name, entry in found.items() if not entry.holds] == ["lowest_reward"]


def test_the_oracle_is_compared_in_standard_errors(runs):
    found = gate.oracle(GATE)
    assert found["difference"].value == pytest.approx(0.1)
    assert found["standard_errors"].value == pytest.approx(0.1 / (0.01 / np.sqrt(3)), rel=1e-6)


def test_quick_counts_all_arms_on_two_cores(runs):
    found, seeds = gate.quick(GATE), gate.presets.SEEDS["quick"]
    seconds = 4 * sum(600 + number + 30 for number in range(seeds))
    assert found["minutes"].value == pytest.approx(seconds / 120) and not found["minutes"].holds
    assert all(found[f"gain_{name}"].holds for name in gate.QUICK)


def test_credit_finds_each_objective_in_its_third(monkeypatch):
    """Two objectives that gain at steps 0 and 4 of six; 64 noisy draws, whose error is taken off."""
    rng, groups, size, draws = np.random.default_rng(0), 32, 8, 64
    gain_TBK = np.zeros((6, groups * size, 2))
    gain_TBK[0, :, 0], gain_TBK[4, :, 1] = rng.normal(size=(2, groups * size))
    gain_TBK[2, :, 1] = 0.5 * rng.normal(size=groups * size)
    value_SBK = np.concatenate([np.zeros((1, groups * size, 2)), gain_TBK.cumsum(0)])
    draws_SNBK = value_SBK[:-1, None] + 2 * rng.normal(size=(6, draws, groups * size, 2))
    tensor = lambda value: SimpleNamespace(numpy=lambda: value)  # noqa: E731
    monkeypatch.setattr(gate, "sample", lambda *_: None)
    monkeypatch.setattr(gate, "continuations", lambda *_: [])
    monkeypatch.setattr(gate, "run_tasks", lambda *_: None)
    monkeypatch.setattr(gate, "load_draws", lambda *_: tensor(draws_SNBK))
    loaded = SimpleNamespace(group_B=tensor(np.repeat(np.arange(groups), size))), SimpleNamespace(reward_BK=tensor(value_SBK[-1]))
    monkeypatch.setattr(gate, "load_trajectories", lambda *_: loaded)
    monkeypatch.setattr(gate.Study, "objectives", ("red", "blue"))
    found = gate.credit(GATE)
    assert "early third" in found["share_red"].unit and found["share_red"].value == pytest.approx(1, abs=0.15)
    assert "late third" in found["share_blue"].unit and found["share_blue"].value == pytest.approx(0.8, abs=0.1)
    assert found["correlation_red_blue"].value < 0.15
    noise = 4 * (2 * 5 + 1) / draws * (1 - 1 / size)
    signal = (1 - 1 / size) * gain_TBK[0, :, 0].var()
    assert found["reliability_red"].value == pytest.approx(signal / (signal + noise), abs=0.1)


def test_the_state_of_the_task_names_the_folder(monkeypatch):
    before, quick = GATE.root(), GATE.root("quick")
    assert before == GATE.root() and before.name.startswith("image-") and before != quick
    monkeypatch.setitem(gate.presets.TRAIN, "image/cpu", gate.presets.TRAIN["image/cpu"] | {"iterations": 7})
    assert GATE.root() != before and GATE.root("quick") == quick
