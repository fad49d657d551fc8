"""Tables, figures and the page on runs made by hand: what is computed, what is escaped, and the same bytes each time."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval.figures import credit_shares, curve_of, gains
from eval.page import write_page
from eval.plots import CELL, GRID_HEAD, GRID_LEFT, contact_sheet, method_styles, sample_grid
from eval.stats import paired_difference
from eval.store import Store, finished_runs, publish
from eval.tables import MOST_COLUMNS, TABLE_COLUMNS, build_table, derived, off_budget, said, write_table
from otca.errors import InputError
from reproduce import all as everything
from reproduce import front_page
from reproduce import table as script
from tests.made_runs import ITERATIONS, SAMPLES, make_run

METHODS = {"base": 0.3, "uniform_grpo": 0.4, "static_multi_reward": 0.5, "otca_tcd": 0.6, "otca_moca": 0.5, "otca": 0.8}
NAMES = [*METHODS]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Published stores of both modalities, three seeds each."""
    folder = tmp_path_factory.mktemp("published")
    for modality in ("image", "video"):
        for method, accuracy in METHODS.items():
            for seed in range(3):
                make_run(
                    folder / "runs", method, seed, accuracy + 0.1 * (seed == 1) - 0.1 * (method == "otca" and seed == 2), modality
                )
        publish(finished_runs(folder / "runs", modality, "quick"), folder / "results", modality, "quick")
    return folder


@pytest.fixture(scope="module")
def store(root):
    return Store(root / "results", "image", "quick")


def test_a_row_has_its_methods_statistics_and_the_paired_difference(store):
    table = build_table(store, NAMES)
    assert tuple(table.columns) == (*TABLE_COLUMNS, "best")
    row = table.query("method == 'otca' and metric == 'accuracy'").iloc[0]
    own, other = np.array([0.8, 0.9, 0.7]), np.array([0.5, 0.6, 0.5])
    d = paired_difference(own, other)
    assert (row["mean"], row["diff"], row["diff_low"], row["diff_high"]) == pytest.approx((own.mean(), d.diff, d.low, d.high))
    assert row["p_holm"] >= d.p and row["prob_improvement"] == 1 and (row["ci_low"], row["ci_high"]) == pytest.approx((0.7, 0.9))
    baseline = table.query("method == 'static_multi_reward' and metric == 'accuracy'").iloc[0]
    assert math.isnan(baseline["diff"]) and math.isnan(baseline["p_holm"])
    base = table.query("method == 'base' and metric == 'accuracy'").iloc[0]  # compared, but no rival: unadjusted
    assert base["p_holm"] == pytest.approx(paired_difference([0.3, 0.4, 0.3], other).p, nan_ok=True)


def test_samples_to_target_count_runs_that_never_reach_it_with_the_baselines_budget(store):
    """The target is .5: static ends at .5, .6, .5, linear from .3; uniform at .4, .5, .4; otca at .8, .9, .7."""
    whole = SAMPLES * ITERATIONS
    means = derived(store).groupby(["metric", "method"])["value"].mean()
    reached = means["samples_to_target"]
    assert reached["static_multi_reward"] == pytest.approx((1 + 2 / 3 + 1) / 3 * whole)
    assert reached["uniform_grpo"] == pytest.approx((1 + 1 + 1) / 3 * whole)
    assert reached["otca"] == pytest.approx((2 / 5 + 2 / 6 + 2 / 4) / 3 * whole) and "base" not in reached
    assert means["reached_target"]["uniform_grpo"] == pytest.approx(1 / 3) and means["reached_target"]["otca"] == 1
    seconds, evaluations = (means[f"{name}_to_target"] / reached for name in ("seconds", "evaluations"))
    assert seconds.to_numpy() == pytest.approx(1.5 / SAMPLES) and evaluations.to_numpy() == pytest.approx(100 / SAMPLES)
    row = build_table(store, NAMES).query("method == 'otca' and metric == 'evaluations_to_target'").iloc[0]
    assert row["mean"] == row["evaluations_to_target"] and row["diff"] < 0 and row["prob_improvement"] == 1


def test_worst_reward_and_hacking_gap_are_of_each_run(store):
    rewards = store.metrics.query("metric in ('alignment', 'quality', 'aesthetic')").groupby(["method", "seed"])["value"]
    own = derived(store).set_index(["metric", "method", "seed"])["value"]
    assert own["worst_trained"].sort_index().to_numpy() == pytest.approx(rewards.min().sort_index().to_numpy())
    assert own["hypervolume"].sort_index().to_numpy() == pytest.approx(rewards.prod().sort_index().to_numpy())
    table = build_table(store, NAMES, ["accuracy"]).set_index(["metric", "method"])
    assert table.loc[("hacking_gap", "otca"), "mean"] == pytest.approx(0.1) and ("diversity", "otca") not in table.index


def test_text_tables_are_narrow_escaped_and_the_same_bytes(store, tmp_path):
    table = build_table(store, NAMES)
    for folder in ("a", "b"):
        write_table(table, tmp_path / folder, "Table <1>", ["a_note & <b>"])
    for name in ("table.csv", "table.md", "table.tex"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    md, tex = (tmp_path / "a/table.md").read_text(), (tmp_path / "a/table.tex").read_text()
    assert md.startswith("# Table \\<1\\>") and "- a\\_note \\& \\<b\\>" in md
    assert all(line.count(" | ") < MOST_COLUMNS for line in md.splitlines()) and r"static\_multi\_reward" in tex
    assert pd.read_csv(tmp_path / "a/table.csv")["mean"].to_numpy() == pytest.approx(table["mean"].to_numpy(), rel=1e-5)


def test_one_sentence_says_what_the_differences_show(store):
    part = build_table(store, ["static_multi_reward", "otca"], ["accuracy"])
    assert said(part, "accuracy") == "Accuracy: otca is significantly better than the baseline."
    assert said(part.assign(p_holm=0.2), "accuracy").endswith("otca is not significantly different from the baseline.")


def test_methods_off_the_budget_are_named(store):
    part = build_table(store, ["static_multi_reward", "otca"], ["accuracy"])
    part.loc[part["method"] == "otca", "network_evaluations"] = 600
    assert off_budget(part).loc["otca", "network_evaluations"] == 1.5
    assert script._budget_note(part) == (
        "Not at that budget, in multiples of static_multi_reward (image): otca (1.50 × network evaluations, 1.00 × reward calls)."
    )
    with pytest.raises(InputError, match="no runs of the baseline 'gdpo'"):
        build_table(store, NAMES, baseline="gdpo")


def test_every_published_table_and_the_page_render_again_byte_for_byte(root, monkeypatch):
    """Figures are drawn for images alone, since they take the time."""
    monkeypatch.chdir(root)
    monkeypatch.setattr("eval.figures.RESAMPLES", 100)
    tables = {name: table for name, table in script.TABLES.items() if "/" not in name}
    monkeypatch.setattr(everything, "TABLES", tables | {"table2": dataclasses.replace(tables["table2"], figures=False)})
    (root / "README.md").write_text("# Title\n\n<!-- headline -->\nold\n<!-- /headline -->\nrest\n")
    written = everything.render()
    folders = [f"results/{name}/quick" for name in ("table1", "table2", "table4")]
    assert [path.as_posix() for path in written] == [*folders, "results/index.html", "README.md"]
    before = {path: path.read_bytes() for path in root.rglob("results/**/*") if path.is_file()}
    everything.render()
    assert {path: path.read_bytes() for path in before} == before
    assert "| otca | **0.800 [0.700, 0.900]** |" in (root / "results/table1/quick/table.md").read_text()
    drawn = {path.stem for path in (root / "results/table1/quick").glob("*.png")}
    assert drawn == {"curves", "curves-cost", "curves-rewards", "trade-offs", "credit", "grid"}
    assert "## Video" in (root / "results/table4/quick/table.md").read_text()


def test_the_front_page_has_six_methods_and_says_which_gates_hold(root, tmp_path):
    """From tables of the cpu tier; a method without runs has dashes, and one that never reaches the target a lower bound."""
    for modality, name in front_page.TABLES.items():
        folder = tmp_path / name / "cpu"
        folder.mkdir(parents=True)
        build_table(Store(root / "results", modality, "quick"), NAMES).to_csv(folder / "table.csv", index=False)
    (tmp_path / "gates").mkdir()
    gates = {"judges/a": True, "credit/a": True, "credit/b": False}
    (tmp_path / "gates/image.json").write_text(json.dumps({name: {"holds": holds} for name, holds in gates.items()}))
    text = front_page.front_page(tmp_path)
    assert "| otca | 0.800 | 0.267 [" in text and "| value\\_head | – | – | – |" in text and "| ≥ " in text
    assert "Images: Accuracy: " in text and "Videos: Accuracy: " in text
    assert "- `otca-image-v2`: judges hold; credit fail; quick, learns, oracle not measured." in text
    assert text.endswith("- `otca-video-v2`: judges, credit, quick, learns, oracle not measured.")


def test_nothing_published_renders_an_empty_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("<!-- headline -->\n\n<!-- /headline -->")
    assert everything.render() == [script.RESULTS / "index.html", everything.README]
    assert "Nothing is published yet" in (tmp_path / "results/index.html").read_text()


def test_the_page_needs_no_network_and_takes_foreign_text_as_text(root, tmp_path):
    method = "otca<script>alert(1)</script>"
    runs = publish(finished_runs(root / "runs", "image", "quick"), tmp_path, "image", "quick").runs
    runs.assign(method=[method if m == "otca" else m for m in runs["method"]]).to_csv(
        tmp_path / "image/quick/runs.csv", index=False
    )
    metrics = Store(tmp_path, "image", "quick").metrics
    metrics.assign(method=[method if m == "otca" else m for m in metrics["method"]]).to_csv(
        tmp_path / "image/quick/metrics.csv", index=False
    )
    text = write_page(tmp_path).read_text()
    assert "<script>alert" not in text and "prompt &lt;0&gt;" in text and "data:image/png;base64," in text
    assert 'src="http' not in text and 'href="http' not in text


def test_a_table_lists_its_runs_seed_by_seed_and_fewer_at_the_quick_tier():
    table = script.TABLES["table1"]
    assert [arm.name for arm in table.arms("quick")[:4]] == [*table.quick] and {arm.seed for arm in table.arms("quick")} == {0, 1}
    assert {*table.methods} < {arm.name for arm in table.arms("cpu")}
    assert {arm.modality for arm in script.TABLES["table4"].arms("quick")} == {"image", "video"}
    arms = script.arms_of(script.TABLES.values(), "cpu")
    assert len({dataclasses.astuple(arm)[:5] for arm in arms}) == len(arms)  # each run once


def test_a_curve_is_the_mean_over_seeds_at_common_iterations():
    rows = pd.DataFrame(
        {"seed": [0, 0, 1, 1, 1], "iteration": [0, 2, 0, 2, 4], "samples": [0, 10, 0, 20, 30], "x": [1, 2, 3, 6, 9]}
    )
    curve = curve_of(rows, "x", "samples")
    assert list(curve.index) == [0, 15] and list(curve["mean"]) == [2, 4]
    assert list(zip(curve["low"], curve["high"])) == [(1, 3), (2, 6)]


def test_credit_shares_are_multiples_of_an_equal_share():
    rows = pd.DataFrame({"seed": 0, "iteration": [0, 1, 2], "samples": [4, 8, np.nan]})
    rows = rows.assign(credit_step_0_a=[1.0, 2, np.nan], credit_step_1_a=[3.0, 2, np.nan], credit_step_2_a=0)
    shares = credit_shares(rows, ["a"])
    assert shares[:, :2, 0].tolist() == [[0.5, 1.5], [1, 1]] and np.isnan(shares[:, 2]).all()  # step 2 was never trained
    assert credit_shares(rows, ["b"]) is None


def test_gains_by_hand():
    """Rewards rise by 2 and 1, in deviations of 2 and .5 by 1 and 2; the gap, lower being better, by .1 for the worse."""
    rows = pd.DataFrame({"a": [1.0, 3.0], "b": [0.0, 1.0], "hacking_gap": [0.1, 0.2]})
    wide = rows.set_axis(pd.MultiIndex.from_tuples([("base", 0), ("otca", 0)], names=["method", "seed"]))
    found = gains(wide, pd.Series({"a": 2.0, "b": 0.5}), "hacking_gap").loc[("otca", 0)]
    assert found.to_dict() == pytest.approx({"rewards": 1.5, "hacking_gap": -0.1})


def test_no_two_methods_look_alike():
    styles = method_styles([*NAMES, *(f"otca@{i}" for i in range(3)), *(f"rival{i}" for i in range(15))])
    assert len({(style["linestyle"], style["marker"]) for style in styles.values()}) == len(styles)


def test_a_grid_keeps_every_pixel_of_its_pictures(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    sample_grid([[picture]], ["a prompt"], ["otca"], tmp_path / "grid.png")
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    each = CELL // 8
    assert (pixels[GRID_HEAD : GRID_HEAD + CELL : each, GRID_LEFT : GRID_LEFT + CELL : each] == picture).all()
    sheet = contact_sheet(np.stack([np.full((2, 3, 3), i, np.uint8) for i in range(3)]))
    assert sheet[:, :, 0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2 + [[2, 2, 2, 255, 255, 255]] * 2
