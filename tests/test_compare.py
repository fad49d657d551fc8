"""Own runs against published ones, paired by seed; what would make it invalid is an error; foreign curves beside ours."""

from __future__ import annotations

import pandas as pd
import pytest

from eval.store import Store, finished_runs, publish
from otca.errors import InputError
from reproduce.compare import compare, external_rows, main, overlay
from tests.made_runs import make_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Published static weighting and OTCA, and runs of a method of one's own, three seeds each."""
    folder = tmp_path_factory.mktemp("compare")
    for method, accuracy in (("static_multi_reward", 0.5), ("otca", 0.6)):
        for seed in range(3):
            make_run(folder / "made", method, seed, accuracy)
    publish(finished_runs(folder / "made", "image", "quick"), folder / "results", "image", "quick")
    for seed in range(3):
        make_run(folder / "runs", "gdpo", seed, 0.7 + 0.1 * (seed == 1))
    return folder


def test_the_difference_is_paired_and_told_in_a_sentence(root, capsys):
    own, rows = root / "runs/image/quick/gdpo", root / "results"
    table = compare([own], "static_multi_reward", rows)
    row = table.query("method == 'gdpo' and metric == 'accuracy'").iloc[0]
    assert row["diff"] == pytest.approx(0.7 / 3) and row["n_seeds"] == 3 and row["prob_improvement"] == 1
    assert main([str(own), "--rows", str(rows), "--against", "otca", "--out", str(root / "out")]) == 0
    assert "gdpo" in capsys.readouterr().out and (root / "out/table.csv").is_file()


def test_one_seed_has_an_interval_over_prompts(root):
    table = compare([root / "runs/image/quick/gdpo/seed0"], "static_multi_reward", root / "results")
    row = table.query("method == 'gdpo' and metric == 'accuracy'").iloc[0]
    assert row["n_seeds"] == 1 and row["diff_low"] < row["diff"] < row["diff_high"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"protocol": {"steps": 20}}, "different protocols .steps: 6 → 20"),
        ({"prompts": "mine.txt"}, "different protocols .training prompts: embedded:image/train → mine.txt"),
        ({"rewards": ["alignment", "clip_score"]}, "trained on clip_score, which the evaluation holds out"),
        ({"seed": 7}, "no common seeds"),
    ],
)
def test_what_would_make_it_invalid_is_an_error(root, tmp_path, changes, said):
    seed = changes.pop("seed", 0) if "seed" in changes else 0
    run = make_run(tmp_path, "gdpo", seed, **changes)
    with pytest.raises(InputError, match=said):
        compare([run], "static_multi_reward", root / "results")


def test_names_runs_and_budgets_that_do_not_fit_are_errors(root, tmp_path, monkeypatch):
    own, rows = root / "runs/image/quick/gdpo", root / "results"
    with pytest.raises(InputError, match="--against otcaa: .*did you mean 'otca'"):
        compare([own], "otcaa", rows)
    with pytest.raises(InputError, match="holds no finished run"):
        compare([tmp_path], "otca", rows)
    with pytest.raises(InputError, match="one and the same run"):
        compare([root / "made/image/quick/otca"], "otca", rows)
    monkeypatch.setattr("tests.made_runs.ITERATIONS", 5)
    costly = make_run(tmp_path, "gdpo", 0)
    with pytest.raises(InputError, match="unequal budget: gdpo had 1.25 times the network evaluations"):
        compare([costly], "otca", rows)
    assert len(compare([costly], "otca", rows, unequal_budget=True))


def test_a_wandb_export_becomes_a_curve_and_a_row_beside_ours(root, tmp_path):
    given = pd.DataFrame({"Step": [0, 1, 2], "run-1 - eval/accuracy": [0.3, 0.4, 0.6], "run-1 - eval/accuracy__MAX": 1.0})
    given.to_csv(tmp_path / "theirs.csv", index=False)
    rows = external_rows(tmp_path / "theirs.csv", "theirs", samples=6)
    assert list(rows["validation_accuracy"]) == [0.3, 0.4, 0.6] and list(rows["samples"].dropna()) == [6, 12]
    table = overlay(Store(root / "results", "image", "quick"), rows, "reported", tmp_path / "out").set_index("method")
    assert table.loc["theirs (reported)", ["samples", "accuracy"]].tolist() == [12, 0.6] and "otca" in table.index
    assert (tmp_path / "out/curves-samples.png").is_file()
    (tmp_path / "odd.csv").write_text("a,b\nx,y\n")
    with pytest.raises(InputError, match="needs a column of samples or iterations and one a reward; it has a, b"):
        external_rows(tmp_path / "odd.csv", "odd", 1)
