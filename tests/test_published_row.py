"""eval.published_row: the row on a model card is that of table.md, and says whether the run is one of those it was made from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from eval.published_row import RESULTS, published_row, row_as_markdown
from eval.sources import run_hashes, write_sources
from eval.tables import BASELINE, CAPTION, EQUAL_CALLS, build_table, collect, write_table
from otca.errors import InputError

VALUES = {
    "base": {"accuracy": (0.4, 0.4, 0.4), "diversity": (0.2, 0.3, 0.4)},
    BASELINE: {"accuracy": (0.4, 0.5, 0.6), "diversity": (0.1, 0.1, 0.1)},
    "otca": {"accuracy": (0.5, 0.65, 0.7), "diversity": (0.2, 0.2, 0.2)},
}
ROW = "| otca | 0.617 [0.500, 0.700] | 0.200 [0.200, 0.200] | – | – | 3 | 10 | 20 |"
DIFFERENCE = "| otca | 0.117 | [0.045, 0.188] | 0.020 | 3 | 1.00 | 0.094 | better |"


def publish_table(results: Path, name="table1", tier="tiny", values=VALUES, title="Table 1: image", **said) -> dict[str, str]:
    """Write a table with its sources; returns the hashes of its runs by path. ``said``: notes, budget, primary."""
    rows = [
        (method, seed, metric, value, 10 * (method != "base"), 20 * (method != "base"), f"{method}{seed}")
        for method, metrics in values.items()
        for metric, of_seed in metrics.items()
        for seed, value in enumerate(of_seed)
    ]
    rows = pd.DataFrame(rows, columns=["method", "seed", "metric", "value", "network_evaluations", "reward_calls", "hash"])
    table, folder = build_table(rows, budget_label=said.get("budget", EQUAL_CALLS)), results / name / tier
    write_table(table, folder, title, said.get("notes", ["Three seeds."]), primary=said.get("primary", "accuracy"))
    runs = run_hashes(rows, "image", tier)
    write_sources(folder, results, runs)
    return runs


def shown(results: Path, method="otca", run_hash="otca1", modality="image", tier="tiny") -> str:
    return "\n\n".join(row_as_markdown(published_row(results, modality, tier, method), run_hash))


def test_the_row_has_means_intervals_seeds_costs_and_the_difference(tmp_path):
    """Differences .1, .15, .1: mean .1167, standard error .0167, t = 7, p = .0198 for the one rival, interval ± 4.303 · .0167."""
    publish_table(tmp_path)
    text = shown(tmp_path)
    assert text.startswith("*Table 1: image* (table1/tiny of the published results) has this run's method, over 3 seeds; ")
    head = "| Method | Accuracy ↑ | Diversity ↑ | Worst trained objective | Hypervolume | Seeds | Network evaluations | Reward "
    baseline = r"| static\_multi\_reward | 0.500 [0.400, 0.600] | 0.100 [0.100, 0.100] | – | – | 3 | 10 | 20 |"
    assert f"\n{head}calls |\n" in text and f"\n{ROW}\n{baseline}\n" in text
    assert "### Accuracy: difference from static\\_multi\\_reward\n\n| Method | Difference | 95 % interval | p (Holm) |" in text
    assert f"\n{DIFFERENCE}\n\nAccuracy: otca is better than static\\_multi\\_reward (3 seeds).\n" in text
    assert f"\n{CAPTION}\n" in text and "| base |" not in text
    assert "Budget: equal iterations and reward calls." in text and text.endswith("\n- Three seeds.")


def test_it_is_said_whether_the_run_is_one_of_the_rows_own(tmp_path):
    publish_table(tmp_path)
    assert "This run is one of them." in shown(tmp_path, run_hash="otca2")
    for other in ("otca3", "base1"):
        assert "This run is not one of them." in shown(tmp_path, run_hash=other)


def test_the_baseline_has_no_difference(tmp_path):
    publish_table(tmp_path)
    text = shown(tmp_path, BASELINE)
    assert "has this run's method as its baseline, over 3 seeds. This run is not one of them." in text
    assert "| 0.500 [0.400, 0.600] |" in text and "| Difference |" not in text and "| otca |" not in text


def test_without_accuracy_the_difference_is_of_the_tables_own_metric(tmp_path):
    values = {method: {"diversity": metrics["diversity"]} for method, metrics in VALUES.items()}
    publish_table(tmp_path, values=values, primary="diversity")
    assert "Diversity: base is not distinguishable from static\\_multi\\_reward with 3 seeds." in shown(tmp_path, "base")


def test_the_first_table_of_the_medium_and_tier_that_has_the_method_is_taken(tmp_path):
    with_variant = VALUES | {"otca@rho0": VALUES["otca"]}
    publish_table(tmp_path, "ablations/a", values=with_variant, title="Ablation")
    publish_table(tmp_path, "table2", title="Second")
    publish_table(tmp_path, "table1", "other", title="Of another tier")
    assert published_row(tmp_path, "image", "tiny", "otca").title == "Second"
    variant = published_row(tmp_path, "image", "tiny", "otca@rho0")
    assert (variant.title, variant.folder) == ("Ablation", "ablations/a/tiny")
    assert list(variant.hashes) == [f"image/tiny/otca@rho0/seed{seed}" for seed in range(3)]
    publish_table(tmp_path, "table1", title="First")
    assert published_row(tmp_path, "image", "tiny", "otca").title == "First"


def test_what_is_not_published_has_no_row(tmp_path):
    publish_table(tmp_path)
    for modality, tier, method in (
        ("video", "tiny", "otca"),
        ("image", "cpu", "otca"),
        ("image", "*", "otca"),
        ("image", "..", "otca"),
        ("image", "tiny", "otc"),
        ("image", "tiny", "otca@rho0"),
    ):
        assert published_row(tmp_path, modality, tier, method) is None
    assert published_row(tmp_path / "nowhere", "image", "tiny", "otca") is None
    (tmp_path / "table1" / "tiny" / "sources.json").unlink()  # written last: the table is not whole
    assert published_row(tmp_path, "image", "tiny", "otca") is None


@pytest.mark.parametrize(
    "name, before, after, rehashed, said",
    [
        ("table.md", "0.617", "0.917", False, "table.md was changed: expected SHA-256 "),
        ("table.csv", "0.616667", "0.916667", False, "table.csv was changed: expected SHA-256 "),
        ("sources.json", "table.csv", "table.xls", False, "sources.json does not say what a table was made from"),
        ("table.csv", "modality,method", "modality,arm", True, "table.csv has not the columns of a published table"),
        ("table.csv", "image,base,accuracy", '"image,base,accuracy', True, "table.csv is no published table"),
        ("table.csv", ",3,", ",many,", True, "table.csv is no published table"),
        ("table.md", "Budget: equal", "Budget: unequal", True, "table.md has not the sections of table.csv"),
        ("table.md", "| otca |", "| other |", True, "table.md lacks 'otca', which table.csv has"),
    ],
)
def test_tables_that_were_changed_or_do_not_fit_are_refused(tmp_path, name, before, after, rehashed, said):
    """In one line that names the file; also where the hashes were made anew."""
    runs, folder = publish_table(tmp_path), tmp_path / "table1" / "tiny"
    assert before in (folder / name).read_text()
    (folder / name).write_text((folder / name).read_text().replace(before, after))
    if rehashed:
        write_sources(folder, tmp_path, runs)
    with pytest.raises(InputError) as error:
        published_row(tmp_path, "image", "tiny", "otca")
    assert str(error.value).startswith(f"{folder}/{said}") and "\n" not in str(error.value)


def test_texts_of_a_table_stay_text(tmp_path):
    evil = "<img src=x> [x](http://y) *b* | `c`"
    publish_table(tmp_path, title=evil, notes=[evil], budget=evil)
    text = shown(tmp_path)
    assert text.count("\\<img src=x\\> [x\\](http://y) \\*b\\* \\| \\`c\\`") == 3
    assert not re.search(r"(?<!\\)<img|(?<!\\)\]\(", text)


@pytest.mark.parametrize(
    "modality, tier, method, folder",
    [
        ("image", "cpu", "process_credit", "table1/cpu"),  # with bold cells
        ("video", "cpu", "otca", "table2/cpu"),
        ("image", "quick", "otca_tcd@averaged", "ablations/temporal/quick"),
    ],
)
def test_rows_of_this_repository_are_those_of_table_md(modality, tier, method, folder):
    """Every line of table.md that begins with the method, as it stands there; and its runs are all of its published ones."""
    row, name = published_row(RESULTS, modality, tier, method), method.replace("_", "\\_")
    assert row.folder == folder
    lines = [line for line in (RESULTS / folder / "table.md").read_text().splitlines() if line.startswith(f"| {name} |")]
    text = "\n\n".join(row_as_markdown(row, "none"))
    assert len(lines) >= 2 and [line for line in text.splitlines() if line.startswith(f"| {name} |")] == lines
    rows = collect(RESULTS, modality, tier, [method])
    assert dict(row.hashes) == run_hashes(rows, modality, tier)


def test_a_table_of_several_media_is_read_by_section(tmp_path):
    """Table 4 has images first, then videos, and its notes are last."""
    shutil.copytree(RESULTS / "table4", tmp_path / "table4")
    for modality, own, other in (("image", "Alignment", "VQ"), ("video", "VQ", "Alignment")):
        text = shown(tmp_path, modality=modality, tier="cpu")
        assert f"| Method | {own} ↑ (trained) |" in text and f"| {other} ↑" not in text
        assert text.count("| Method | Difference |") == 1
        assert "### Video" not in text and "numbers are this repository's own" in text.splitlines()[-1]
