"""What the page's data say of pairs and media, the tables' caption of intervals, and `results/README.md` of training rows."""

from __future__ import annotations

import csv
import re

import pytest

from eval.columns import METRICS
from eval.markup import markdown
from eval.page.markdown import plain
from eval.page.tables import MEDIA, documents
from eval.stats import bootstrap_interval
from eval.tables import CAPTION, DIFFERENCE_HEADS, run_values
from tests.pages import RESULTS, some_results

ONE_SUM = ("uniform_grpo", "flow_grpo", "gdpo", "coca")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return some_results(tmp_path_factory.mktemp("page") / "results")


@pytest.fixture(scope="module")
def shown(published):
    """The documents of a small folder of results, by id, in their order."""
    return {document["id"]: document for document in documents(published)}


def test_pairs_follow_their_table_and_have_its_modality(shown):
    ids = [*shown]
    for table, pairs in (("table1/cpu", "pairs/table1-cpu"), ("ablations/tcd/cpu", "pairs/ablations-tcd-cpu")):
        assert ids[ids.index(table) + 1] == pairs and shown[pairs]["of"] == table
        assert {block["modality"] for block in shown[pairs]["blocks"]} == {"image"}
    assert [name for name in ids if "of" in shown[name]] == ["pairs/table1-cpu", "pairs/ablations-tcd-cpu"]


def test_every_published_document_of_pairs_has_its_table():
    tables = {path.parent.relative_to(RESULTS).as_posix().replace("/", "-") for path in RESULTS.rglob("sources.json")}
    assert {path.stem for path in RESULTS.glob("pairs/*.md")} <= tables


def test_pairs_without_their_table_are_text(published, tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "table9-cpu.md").write_text((published / "pairs" / "table1-cpu.md").read_text())
    [document] = documents(tmp_path)
    assert document["title"] == "Table 1: image (cpu tier): pairs" and "of" not in document
    assert {block["modality"] for block in document["blocks"]} == {""}


@pytest.mark.parametrize("name", ["pairs/table1-cpu", "pairs/ablations-tcd-cpu"])
def test_differences_of_pairs_are_those_of_the_runs_that_their_cells_lead_to(shown, published, name):
    """Mean over the common seeds of method less other, from the rows of the runs that the page lists of the two."""
    runs, values = shown[shown[name]["of"]]["runs"]["image"], {}
    for block in (b for b in shown[name]["blocks"] if b["kind"] == "table"):
        [metric] = {m for m in block["metrics"] if m}
        assert [head for head, m in zip(block["heads"], block["metrics"]) if m] == list(DIFFERENCE_HEADS)
        assert block["label"] == METRICS[metric].label
        for cells in block["rows"]:
            row = dict(zip(block["heads"], cells))
            of_seed = []
            for method in (cells[0], row.get("Of", block["against"])):
                for run, _ in runs[method]:
                    values.setdefault(run, run_values(published / run))
                of_seed.append({run.rpartition("seed")[2]: values[run][metric] for run, _ in runs[method]})
            common = of_seed[0].keys() & of_seed[1].keys()
            difference = sum(of_seed[0][k] - of_seed[1][k] for k in common) / len(common)
            assert len(common) == int(row["Pairs"]) > 2
            shown_difference = float(row["Difference"].replace("−", "-"))
            assert shown_difference == pytest.approx(difference, abs=0.5000001 * 10 ** -METRICS[metric].decimals)


def test_a_text_about_one_medium_has_it(shown):
    assert {block["modality"] for block in shown["embedded/image"]["blocks"]} == {"image"}
    assert {block["modality"] for document in shown.values() for block in document["blocks"]} <= {"", *MEDIA}


def test_columns_that_some_training_rows_lack_are_told():
    """`results/README.md`: which runs have neither skipped updates nor credit by step, and which methods credit one sum."""
    lacking = {}
    for path in RESULTS.glob("*/*/*/seed*/train.csv"):
        with path.open() as file:
            header = next(csv.reader(file))
        modality, tier, method = path.parts[-5:-2]
        new = "skipped_updates" in header
        summed = method.partition("@")[0] in ONE_SUM
        assert any(re.match(r"weight_(?!step_\d)", name) for name in header) == (not summed), path
        assert any(name.startswith("credit_step_") for name in header) == (new and not summed), path
        lacking.setdefault(f"{modality}/{tier}", []).append(not new)
    [line] = [line for line in (RESULTS / "README.md").read_text().splitlines() if line.startswith("| `<run>/train.csv`")]
    assert f"(not {', '.join(f'`{name}`' for name in ONE_SUM)} and their variants" in line
    assert sorted(place for place, of_run in lacking.items() if all(of_run)) == ["image/study", "video/quick"]
    assert [place for place, of_run in lacking.items() if 0 < sum(of_run) < len(of_run)] == ["image/quick"]
    some = lacking["image/quick"]
    assert f"all of `image/study` and `video/quick`, and {sum(some)} of the {len(some)} of `image/quick`." in line


def test_the_caption_of_tables_is_plain_and_says_what_few_seeds_give():
    """Nothing in it is markup, so the page says it as it is; an interval of 2 to 4 seeds goes from the lowest to the highest."""
    assert markdown(CAPTION) == plain(CAPTION) == CAPTION and "(of 2 to 4 seeds: lowest to highest)" in CAPTION
    values = [0.1, 0.7, 0.2, 0.4, 0.5]
    for n in (2, 3, 4):
        assert bootstrap_interval(values[:n]) == pytest.approx((0.1, max(values[:n])))
    low, high = bootstrap_interval(values)
    assert 0.1 < low < high < 0.7
