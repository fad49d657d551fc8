"""eval.tables on small published runs written by hand: what is read, what is computed, what bytes come out."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.held_out import MOTION
from eval.stats import paired_difference
from eval.tables import (
    EQUAL_CALLS,
    METRICS,
    TABLE_COLUMNS,
    build_table,
    clear_winners,
    collect,
    differences,
    verdict,
    write_table,
)
from otca import presets
from otca.config import TrainConfig
from otca.errors import InputError
from reproduce import table as script

RESULTS = Path(__file__).parent.parent / "results"
METHODS = ["base", "static_multi_reward", "uniform_grpo", "otca"]


def publish(root, method, seed, correct, alignment=(0.5, 0.7), distance=0.1, claims=None):
    """A published run of two items, one a skill."""
    folder = root / "image" / "quick" / method / f"seed{seed}"
    folder.mkdir(parents=True)
    budget = {"network_evaluations": 1200, "reward_calls": 300}
    record = {"method": method, "seed": seed, "tier": "quick", "modality": "image", "hash": f"{method}-{seed}", "budget": budget}
    (folder / "manifest.json").write_text(json.dumps(record | {"seconds": 1.5} | (claims or {})))
    scores = {"prompt_id": [1, 2], "sample": [0, 0], "skill": ["counting", "position"], "text": ["two, rings", "a | b"]}
    scores |= {"alignment": alignment, "quality": (0.2, 0.4), "judge_correct": correct}
    pd.DataFrame(scores).to_csv(folder / "scores.csv.gz", index=False)
    pd.DataFrame({"metric": ["kernel_distance"], "value": [distance], "n": [2]}).to_csv(folder / "sets.csv", index=False)
    return folder


def published(root):
    """base .5; static .5, 0; uniform as static; otca 1, .5 (over two seeds)."""
    for method, correct in zip(METHODS, ([(1, 0), (1, 0)], [(1, 0), (0, 0)], [(1, 0), (0, 0)], [(1, 1), (0, 1)])):
        for seed, of_seed in enumerate(correct):
            publish(root, method, seed, of_seed, distance=0.1 - 0.05 * (method == "otca") - 0.01 * seed)
    return root


def make_rows(values, metric="accuracy"):
    """Long rows from method → values in seed order."""
    rows = [(m, seed, metric, value, 10, 20, f"{m}{seed}") for m, of_seed in values.items() for seed, value in enumerate(of_seed)]
    columns = ["method", "seed", "metric", "value", "network_evaluations", "reward_calls", "hash"]
    return pd.DataFrame(rows, columns=columns)


def cell(table, method, metric, column):
    return table[(table["method"] == method) & (table["metric"] == metric)][column].item()


def test_collect_averages_items_and_reads_sets(tmp_path):
    rows = collect(published(tmp_path), "image", "quick", METHODS)
    got = rows[(rows["method"] == "otca") & (rows["seed"] == 1)].set_index("metric")["value"].to_dict()
    assert got == pytest.approx(
        {
            "alignment": 0.6,
            "quality": 0.3,
            "accuracy": 0.5,
            "accuracy/counting": 0,
            "accuracy/position": 1,
            "kernel_distance": 0.04,
        }
    )
    assert len(rows) == 4 * 2 * 6 and set(rows["network_evaluations"]) == {1200} and set(rows["reward_calls"]) == {300}
    assert rows["hash"].iloc[-1] == "otca-1"


def test_collect_reads_seeds_in_numerical_order_variants_and_true_false(tmp_path):
    for seed in (10, 2):
        publish(tmp_path, "otca@rho0", seed, (True, False), claims={"method": "otca"})
    rows = collect(tmp_path, "image", "quick", ["otca@rho0"])
    assert list(rows["seed"].unique()) == [2, 10] and set(rows["method"]) == {"otca@rho0"}
    assert set(rows[rows["metric"] == "accuracy"]["value"]) == {0.5}


def test_a_missing_run_or_file_names_the_folder_and_the_command(tmp_path):
    place = "--modality image --tier quick`"
    make_it = (
        f"make it with `python -m reproduce.method otca@T5 {place}, and publish it with `python -m reproduce.publish {place}$"
    )
    with pytest.raises(FileNotFoundError, match=rf"no run in .*image.quick.otca@T5.seed0; {make_it}"):
        collect(tmp_path, "image", "quick", ["otca@T5"])
    (publish(tmp_path, "otca", 3, (1, 1)) / "sets.csv").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"otca.seed3 lacks sets.csv; make it with .*method otca --modality image --tier quick"
    ):
        collect(tmp_path, "image", "quick", ["otca"])


def test_blank_values_and_foreign_manifests_are_refused(tmp_path):
    publish(tmp_path, "otca", 0, (1, 1), alignment=(0.5, None))
    with pytest.raises(InputError, match="alignment has blank or non-finite"):
        collect(tmp_path, "image", "quick", ["otca"])
    publish(tmp_path, "flow_grpo", 0, (1, 1), claims={"seed": 4})
    with pytest.raises(InputError, match="describes another run.*4"):
        collect(tmp_path, "image", "quick", ["flow_grpo"])


def test_build_table_has_the_schema_and_the_statistics_of_the_pairs():
    values = {"base": [0.3] * 3, "static_multi_reward": [0.4, 0.5, 0.6], "otca": [0.5, 0.7, 0.9], "uniform_grpo": [0.4, 0.5, 0.6]}
    table = build_table(make_rows(values), "static_multi_reward", "equal seconds", "image")
    assert tuple(table.columns) == TABLE_COLUMNS and list(table["method"]) == list(values)
    assert set(table["budget"]) == {"equal seconds"} and set(table["n_seeds"]) == {3}
    # otca differs by .1, .2, .3: the hand calculation of test_stats, a tenth of it.
    assert cell(table, "otca", "accuracy", "diff") == pytest.approx(0.2)
    half = 0.1 * 4.302652729911275 / math.sqrt(3)
    assert cell(table, "otca", "accuracy", "diff_low") == pytest.approx(0.2 - half)
    assert cell(table, "otca", "accuracy", "p_paired") == pytest.approx(2 * (1 - math.sqrt(12 / 14)))  # smaller of two rivals
    assert cell(table, "uniform_grpo", "accuracy", "p_paired") == 1 and cell(table, "uniform_grpo", "accuracy", "diff") == 0
    assert cell(table, "uniform_grpo", "accuracy", "prob_improvement") == 0.5
    assert cell(table, "base", "accuracy", "p_paired") == paired_difference(values["base"], values["static_multi_reward"]).p
    assert math.isnan(cell(table, "static_multi_reward", "accuracy", "diff"))
    assert cell(table, "otca", "accuracy", "iqm") == cell(table, "otca", "accuracy", "mean") == pytest.approx(0.7)


def test_lower_is_better_turns_the_probability_but_not_the_sign():
    values = {"static_multi_reward": [0.5, 0.6], "otca": [0.4, 0.4]}
    table = build_table(make_rows(values, "kernel_distance"))
    assert cell(table, "otca", "kernel_distance", "diff") == pytest.approx(-0.15)
    assert cell(table, "otca", "kernel_distance", "prob_improvement") == 1


def test_arms_with_fewer_seeds_are_paired_on_the_common_ones():
    table = build_table(make_rows({"static_multi_reward": [0.5, 0.6, 0.9], "otca": [0.6, 0.8]}))
    assert cell(table, "otca", "accuracy", "diff") == pytest.approx(0.15)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), min_size=2, max_size=5))
def test_swapping_baseline_and_rival_flips_the_difference(pairs):
    a, b = ([x / 64 for x in side] for side in zip(*pairs))
    rows = make_rows({"otca": a, "static_multi_reward": b})
    forth = build_table(rows, "static_multi_reward").set_index("method").loc["otca"]
    back = build_table(rows, "otca").set_index("method").loc["static_multi_reward"]
    assert forth[["diff", "diff_low", "p_paired", "prob_improvement"]].tolist() == pytest.approx(
        [-back["diff"], -back["diff_high"], back["p_paired"], 1 - back["prob_improvement"]], nan_ok=True
    )


def test_bad_rows_are_named():
    rows = make_rows({"static_multi_reward": [0.5, 0.6], "otca": [0.6, 0.8]})
    with pytest.raises(InputError, match="baseline 'flow_grpo' has no 'accuracy'"):
        build_table(rows, "flow_grpo")
    with pytest.raises(InputError, match="unknown metric charm"):
        build_table(rows.assign(metric="charm"))
    with pytest.raises(InputError, match="repeated rows"):
        build_table(pd.concat([rows, rows]))
    with pytest.raises(InputError, match="different seeds"):
        build_table(rows.assign(seed=[0, 1, 1, 2]))


def test_clear_winner_needs_an_interval_that_excludes_zero():
    clear = {"static_multi_reward": [0.40, 0.50, 0.60], "otca": [0.61, 0.70, 0.81], "base": [0.1, 0.1, 0.1]}
    assert clear_winners(make_rows(clear), "b") == {("image", "b", "accuracy"): "otca"}
    assert clear_winners(make_rows(clear | {"uniform_grpo": [0.6, 0.72, 0.79]}), "b") == {}
    assert clear_winners(make_rows(clear, "kernel_distance"), "b", "video") == {("video", "b", "kernel_distance"): "base"}
    assert clear_winners(make_rows({"otca": [0.5, 0.6]}), "b") == {}


def test_write_table_is_the_same_bytes_twice_and_from_rows_read_again(tmp_path):
    rows = collect(published(tmp_path / "results"), "image", "quick", METHODS)
    rows.to_csv(tmp_path / "rows.csv", index=False)
    again = pd.read_csv(tmp_path / "rows.csv")
    for name, source in (("a", rows), ("b", rows), ("c", again)):
        write_table(build_table(source), tmp_path / name, "Title", ["note"], clear_winners(source, EQUAL_CALLS))
    for name in ("table.csv", "table.md", "table.tex"):
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
        assert data.endswith(b"\n") and b"\r" not in data
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["table.csv", "table.md", "table.tex"]


def test_markdown_holds_means_differences_and_summary(tmp_path):
    write_table(build_table(collect(published(tmp_path), "image", "quick", METHODS)), tmp_path, "Title", ["one note"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "# Title" and lines[-1] == "- one note"
    otca = next(line for line in lines if line.startswith("| otca |"))
    # accuracy 1, .5; trained means .6 and .3, so worst .3 (quality) and hypervolume .18
    for text in (" 0.750 [0.500, 1.000] ", " 0.0450 [0.0400, 0.0500] ", " 0.300 (quality) ", " 0.180 ", " 2 | 1,200 | 300 |"):
        assert text in otca
    heads = next(line for line in lines if line.startswith("| Method"))
    assert "Alignment ↑ (trained)" in heads and "Kernel distance ↓" in heads and "Counting" not in heads
    # otca − static is .5 in both seeds: no spread, so neither interval nor p; base − static is 0, .5: t = 1 on 1 degree, p = .5
    assert "| otca | 0.500 | – | – | 2 | 1.00 | – | not distinguishable |" in lines
    assert any(line.startswith("| base | 0.250 | [−2.927, 3.427] | 0.500 | 2 | 0.75 | ") for line in lines)
    assert "| otca | 0.500 [0.000, 1.000] | 1.000 [1.000, 1.000] |" in lines  # by skill


def test_a_side_is_named_where_the_interval_excludes_zero_and_whether_it_outlives_the_adjustment():
    """Differences from .5: about .11 (t = 19, p = .003); .10, .20, .15 (t = 5.2, p = .035); 0, .1, −.1; about −.2."""
    values = {"static_multi_reward": [0.5] * 3, "uniform_grpo": [0.6, 0.61, 0.62], "otca_tcd": [0.6, 0.7, 0.65]}
    values |= {"otca_moca": [0.5, 0.6, 0.4], "otca": [0.3, 0.301, 0.302]}
    table = build_table(make_rows(values))
    grid = differences(table, "accuracy")
    shown = {method: cell for (method, _), (cell, _) in zip(grid["Method"], grid["Shows"])}
    wanted = {"uniform_grpo": "better", "otca_tcd": "better, unadjusted", "otca_moca": "not distinguishable", "otca": "worse"}
    assert shown == wanted
    assert verdict(table, "accuracy", "otca") == "Accuracy: otca is worse than static_multi_reward (3 seeds)."
    said = verdict(table, "accuracy", "otca_tcd")
    start = "Accuracy: otca_tcd is better than static_multi_reward (3 seeds), though not after Holm's adjustment (p = 0.0"
    assert said.startswith(start) and float(said[-6:-2]) >= 0.05
    fewer = build_table(make_rows({name: values[name] for name in ("static_multi_reward", "otca_tcd")}))
    assert differences(fewer, "accuracy")["Shows"] == [("better", False)]
    distances = build_table(make_rows(values, "kernel_distance"))
    assert differences(distances, "kernel_distance")["Shows"][0] == ("worse", False)  # more of it is worse


def test_only_clear_winners_are_bold(tmp_path):
    values = {"static_multi_reward": [0.40, 0.50, 0.60], "otca": [0.61, 0.70, 0.81]}
    rows = make_rows(values)
    write_table(build_table(rows), tmp_path, "T", [])
    assert "**" not in (tmp_path / "table.md").read_text()
    write_table(build_table(rows), tmp_path, "T", [], clear_winners(rows, EQUAL_CALLS))
    assert "| **0.707 [0.610, 0.810]** |" in (tmp_path / "table.md").read_text()
    assert r"\textbf{0.707 [0.610, 0.810]}" in (tmp_path / "table.tex").read_text()


def test_each_budget_has_its_own_section(tmp_path):
    rows = make_rows({"static_multi_reward": [0.4, 0.5], "otca": [0.6, 0.8]})
    both = pd.concat([build_table(rows), build_table(rows, budget_label="equal network evaluations")])
    write_table(both, tmp_path, "T", [])
    assert (tmp_path / "table.md").read_text().count("Budget: ") == 2
    assert (tmp_path / "table.tex").read_text().count(r"\begin{tabular}") == 2
    assert len(pd.read_csv(tmp_path / "table.csv")) == 4


def test_special_characters_are_escaped(tmp_path):
    rows = make_rows({"static_multi_reward": [0.4, 0.5], r"a_b|50%&$#{x}~^\<": [0.6, 0.8]})
    write_table(build_table(rows), tmp_path, "A*B_C\n# not a heading", ["[link](http://x) `code`"])
    md, tex = (tmp_path / "table.md").read_text(), (tmp_path / "table.tex").read_text()
    assert r"a\_b\|50%\&\$\#{x}\~^\\\<" in md
    assert md.startswith("# A\\*B\\_C \\# not a heading\n") and r"- [link\](http://x) \`code\`" in md
    assert r"a\_b|50\%\&\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}$<$ & 0.700" in tex
    assert all(line.startswith(("%", "\\")) or line.endswith(r" \\") for line in tex.splitlines())


def test_registry_order_and_direction():
    names = list(METRICS)
    embedded, published = ["alignment", "quality", "aesthetic", "vq", "mq", "ta"], ["hpsv2", "clip"]
    trained = [*embedded, *published, "videoalign_vq", "videoalign_mq"]
    assert names[: len(trained) + 1] == [*trained, "accuracy"] and names.index("clip_score") > names.index("accuracy/colors")
    assert [name for name, metric in METRICS.items() if not metric.held_out] == trained
    lower = [name for name, metric in METRICS.items() if metric.higher_is_better is False]
    assert lower == ["kernel_distance", "frechet_distance", "warping_error_dis"]
    assert [name for name, metric in METRICS.items() if metric.higher_is_better is None] == ["top_flow_dis"]


@pytest.mark.parametrize("name", presets.EVAL)
def test_what_a_tier_trains_on_is_not_held_out(name):
    rewards, held_out = presets.preset(name).get("rewards", TrainConfig().rewards), presets.eval_config(name).held_out
    assert not any(METRICS[reward].held_out for reward in rewards)
    assert all(METRICS[metric].held_out for metric in held_out if metric != MOTION)


def test_a_metric_without_a_better_side_has_no_arrow_and_no_winner(tmp_path):
    """Flow length: more is not better, so nothing is bold and no probability of improvement is given."""
    rows = make_rows({"static_multi_reward": [0.4, 0.5], "otca": [0.9, 0.9]}).assign(metric="top_flow_dis")
    assert clear_winners(rows, EQUAL_CALLS) == {}
    table = build_table(rows)
    assert table["prob_improvement"].isna().all() and table["diff"].notna().sum() == 1
    write_table(table, tmp_path, "Motion", [], primary="top_flow_dis")
    md = (tmp_path / "table.md").read_text()
    assert "Top-5 % flow (DIS), px a frame |" in md and "## Top-5 % flow (DIS), px a frame: difference from" in md


def test_rows_off_the_budget_are_told_and_never_bold(tmp_path, monkeypatch):
    """Twice the evaluations: the best accuracy is not bold, that of the rest is; at 1 % more it counts as at the budget."""
    values = {"static_multi_reward": [0.40, 0.50, 0.60], "otca": [0.61, 0.70, 0.81], "process_credit": [0.80, 0.90, 1.00]}
    rows = make_rows(values)
    for factor, best in ((2.0, "**0.707 [0.610, 0.810]**"), (1.01, "**0.900 [0.800, 1.000]**")):
        costly = rows.assign(network_evaluations=[1000 * (factor if m == "process_credit" else 1.0) for m in rows["method"]])
        monkeypatch.setattr(script, "collect", lambda *args, made=costly: made)
        made = script.Table("made", "Made", ("image",), tuple(values), "accuracy", (), figures=False, versus=("otca",))
        monkeypatch.setattr(script, "write_sources", lambda *args: None)
        text = (made.write(tmp_path, "cpu") / "table.md").read_text()
        assert best in text and text.count("**") == 2
        assert ("process\\_credit (2.00 × network evaluations" in text) == (factor == 2.0)
    pairs = (tmp_path / "pairs" / "made-cpu.md").read_text()
    assert "## Accuracy: difference from otca" in pairs and "| static\\_multi\\_reward | −0.207 |" in pairs


def test_published_pairs_are_those_of_their_rows():
    """The differences of process credit at equal evaluations from OTCA, read from the pair's other side."""
    for name, modality in (("table1", "image"), ("table2", "video")):
        text = (RESULTS / "pairs" / f"{name}-cpu.md").read_text()
        rows = collect(RESULTS, modality, "cpu", ["otca", "process_credit@equal"])
        accuracy = rows[rows["metric"] == "accuracy"].pivot(index="seed", columns="method", values="value")
        difference = paired_difference(accuracy["process_credit@equal"].to_numpy(), accuracy["otca"].to_numpy())
        against_otca = text.partition("difference from otca")[2].partition("\n## ")[0]
        sign = f"{difference.diff:.3f}, {difference.low:.3f}, {difference.high:.3f}".replace("-", "−").split(", ")
        assert f"| process\\_credit@equal | {sign[0]} | [{sign[1]}, {sign[2]}] |" in against_otca
