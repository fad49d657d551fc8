"""``verify`` finds every change of a published run, a table and a checkpoint; ``doctor`` says what is wrong and the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import otca.commands.doctor as doctor
import otca.files
from eval.published import write_listing
from otca.__main__ import main

PUBLISHED = Path(__file__).parent.parent / "results/image/quick/otca/seed0"


@pytest.fixture
def run(tmp_path):
    """A copy of a published run without its pictures."""
    return Path(shutil.copytree(PUBLISHED, tmp_path / "runs/otca/seed0", ignore=shutil.ignore_patterns("media")))


def verified(capsys, folder) -> tuple[int, str]:
    code = main(["verify", str(folder)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_every_published_run_and_table_is_whole(capsys):
    results = PUBLISHED.parents[3]
    count, tables = (sum(1 for _ in results.rglob(name)) for name in ("manifest.json", "table.csv"))
    code, said = verified(capsys, results)
    assert code == 0 and count >= 24 and tables >= 5
    assert f"looked at {count} runs, 0 checkpoints and {tables} tables" in said
    assert ("published files" in said) == (results / otca.files.HASHES).is_file()


@pytest.mark.parametrize("name", ["config.yaml", "train.csv", "scores.csv.gz", "sets.csv"])
def test_a_changed_or_missing_file_is_named(capsys, run, name):
    path = run / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, said = verified(capsys, run.parents[1])
    assert code == 2 and f"{path} was changed: expected SHA-256" in said and "1 damages" in said
    path.unlink()
    assert f"{path} is missing" in verified(capsys, run)[1]


def test_an_edited_manifest_is_found(capsys, run):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"budget": {"network_evaluations": 1, "reward_calls": 1}}))
    assert f"{path} was edited" in verified(capsys, run)[1]
    path.write_text("{")
    assert f"{path} is no manifest of a run" in verified(capsys, run)[1]


@pytest.fixture
def table(tmp_path):
    """A copy of the published Table 1 in its place above copies of its runs."""
    results = PUBLISHED.parents[3]
    runs, out = "image/quick", tmp_path / "results"
    shutil.copytree(results / runs, out / runs, ignore=shutil.ignore_patterns("media"))
    return Path(shutil.copytree(results / "table1/quick", out / "table1/quick", ignore=shutil.ignore_patterns("*.*g", "*.webp")))


def edit(table, change):
    """Change table.csv, and fix its hash up as one would who wants that to stay unseen."""
    rows = pd.read_csv(table / "table.csv", dtype=str, keep_default_na=False)
    change(rows).to_csv(table / "table.csv", index=False, lineterminator="\n")
    sources = json.loads((table / "sources.json").read_text())
    sources["files"]["table.csv"] = otca.files.sha256(table / "table.csv")
    (table / "sources.json").write_text(json.dumps(sources))


def test_a_table_knows_its_runs_and_brings_them_along(capsys, table):
    """The runs of a table are looked at where the table alone is asked for."""
    sources = json.loads((table / "sources.json").read_text())
    assert len(sources["runs"]) == 12 and sorted(sources["files"]) == ["table.csv", "table.md", "table.tex"]
    code, said = verified(capsys, table)
    assert code == 0 and "looked at 12 runs, 0 checkpoints and 1 tables" in said
    rows = table.parents[1] / "image/quick/otca/seed1/train.csv"
    rows.write_text(rows.read_text() + "\n")
    code, said = verified(capsys, table)
    assert code == 2 and "otca/seed1/train.csv was changed" in said and "1 damages" in said


@pytest.mark.parametrize("name", ["table.csv", "table.md", "table.tex"])
def test_an_edited_or_missing_file_of_a_table_is_named(capsys, table, name):
    (table / name).write_text((table / name).read_text() + "\n")
    code, said = verified(capsys, table)
    assert code == 2 and f"{table / name} was changed: expected SHA-256" in said and "1 damages" in said
    (table / name).unlink()
    assert f"{table / name} is missing" in verified(capsys, table)[1]


def test_an_untouched_table_stays_whole_when_its_hash_is_written_again(capsys, table):
    edit(table, lambda rows: rows)
    assert verified(capsys, table)[0] == 0


@pytest.mark.parametrize(
    "column, value", [("mean", "0.696214"), ("ci_low", "0.7"), ("p_paired", ""), ("held_out", "False"), ("reward_calls", "1")]
)
def test_an_edited_cell_is_found_although_its_hash_was_fixed_up(capsys, table, column, value):
    """The mean of otca's clip_score is printed as 0.696213: the last digit counts."""
    before = pd.read_csv(table / "table.csv", dtype=str, keep_default_na=False)
    row = before.index[(before["method"] == "otca") & (before["metric"] == "clip_score")][0]

    def change(rows):
        rows.loc[row, column] = value
        return rows

    edit(table, change)
    code, said = verified(capsys, table)
    expected = f"{table / 'table.csv'}: {column} of image otca clip_score is {value!r}; its rows give {before[column][row]!r}"
    assert code == 2 and expected in said and "1 damages" in said


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: rows.drop(index=67), "table.csv has 77 rows and 18 columns; its rows give 78 and 18"),
        (lambda rows: rows[rows["method"] != "otca"], "table.csv has 65 rows"),
        (lambda rows: rows.drop(columns="iqm"), "has 78 rows and 17 columns; its rows give 78 and 18"),
        (lambda rows: rows.assign(medium="video"), "it was made from runs of image, and has rows of video"),
        (lambda rows: rows.assign(baseline="none"), "table.csv cannot be made again from its rows (baseline 'none' has no"),
        (lambda rows: rows.iloc[:0], "table.csv cannot be made again"),
    ],
)
def test_rows_and_columns_that_went_missing_are_found(capsys, table, change, said):
    edit(table, change)
    assert said in verified(capsys, table)[1]


def test_a_replaced_run_is_found(capsys, table):
    """Another run in its place is whole in itself; so is the same run made again with other rows."""
    runs = table.parents[1] / "image/quick"
    before, after = (json.loads((runs / "otca" / seed / "manifest.json").read_text())["hash"] for seed in ("seed0", "seed1"))
    shutil.rmtree(runs / "otca/seed0")
    shutil.copytree(runs / "otca/seed1", runs / "otca/seed0")
    code, said = verified(capsys, table.parents[1])
    assert code == 2 and f"run {runs / 'otca/seed0'} is not the one that {table} was made from: {after}, not {before}" in said


def test_a_missing_run_is_named(capsys, table):
    run = table.parents[1] / "image/quick/otca_tcd/seed1"
    shutil.rmtree(run)
    code, said = verified(capsys, table)
    assert code == 2 and f"run {run} is missing, from which {table} was made" in said and "looked at 11 runs" in said


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "does not say what a table was made from (JSONDecodeError"),
        ("{}", "does not say what a table was made from (KeyError('root'))"),
        ({"root": "/etc"}, "root '/etc'"),
        ({"root": "../../x/.."}, "root '../../x/..'"),
        ({"runs": {}}, "0 runs"),
        ({"runs": {"../../../etc/seed0": ""}}, "lists '../../../etc/seed0', which is no medium/tier/method/seedN"),
        ({"files": {"../table.csv": ""}}, "files ['../table.csv']"),
    ],
)
def test_a_list_of_sources_that_is_none_or_leads_elsewhere_is_refused(capsys, table, content, said):
    path = table / "sources.json"
    whole = json.loads(path.read_text())
    path.write_text(content if isinstance(content, str) else json.dumps(whole | content))
    code, told = verified(capsys, table.parents[1])
    assert code == 2 and str(path) in told and said in told


@pytest.fixture
def listed(table):
    """Results of one table and its runs, with data of other kinds, and what lists it all."""
    results = table.parents[1]
    for name in ("tuning/a.csv", "credit_fidelity/b-cells.csv.gz", "speed/c.json", "fuzz/table.md", "x/d.jsonl", "x/e.tex"):
        (results / name).parent.mkdir(exist_ok=True)
        (results / name).write_text("abc")
    for name in ("README.md", "index.html", "page.png", "x/f.svg", "image/quick/otca/seed0/probe.csv", "image/quick/cost.csv"):
        (results / name).write_text("abc")
    write_listing(results)
    return results


def test_what_is_listed_are_data_outside_of_runs(listed):
    """The hash of abc is FIPS 180's example; pictures, pages, the description, rows of runs and the listing are left out."""
    found = json.loads((listed / "sha256.json").read_text())
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    table = {f"table1/quick/{name}" for name in ("sources.json", "table.csv", "table.md", "table.tex")}
    assert {name for name, digest in found.items() if digest == abc} == {*found} - table
    assert {*found} - table == {
        *("credit_fidelity/b-cells.csv.gz", "fuzz/table.md", "image/quick/cost.csv", "speed/c.json", "tuning/a.csv"),
        *("x/d.jsonl", "x/e.tex"),
    }
    assert [*found] == sorted(found)


def test_published_files_that_changed_went_or_came_are_named(capsys, listed):
    code, said = verified(capsys, listed)
    assert code == 0 and "runs, 0 checkpoints and 1 tables, 11 published files" in said
    (listed / "tuning/a.csv").write_text("abd")
    (listed / "speed/c.json").unlink()
    (listed / "precision").mkdir()
    (listed / "precision/g.csv").write_text("abc")
    code, said = verified(capsys, listed)
    assert code == 2 and "3 damages" in said
    assert f"{listed / 'tuning/a.csv'} was changed: expected SHA-256 ba7816bf8f01cfea…" in said
    assert f"{listed / 'speed/c.json'} is missing\n" in said
    assert f"{listed / 'precision/g.csv'} is not listed in {listed / 'sha256.json'}\n" in said


def test_a_changed_table_that_two_lists_have_is_one_damage(capsys, listed):
    path = listed / "table1/quick/table.md"
    path.write_text(path.read_text() + "\n")
    code, said = verified(capsys, listed)
    assert code == 2 and said.count(f"{path} was changed") == 1 and "1 damages" in said


@pytest.mark.parametrize(
    "content, said",
    [("{", "sha256.json"), ("[]", "holds a list and no object"), ('{"../../a.csv": "0"}', "../../a.csv is missing")],
)
def test_a_listing_that_is_none_or_leads_elsewhere_is_told(capsys, listed, content, said):
    (listed.parent.parent / "a.csv").write_text("abc")
    (listed / "sha256.json").write_text(content)
    code, told = verified(capsys, listed)
    assert code == 2 and said in told and "Traceback" not in told


def test_checkpoints_are_looked_at(capsys, tmp_path):
    folder = Path(shutil.copytree(otca.files.EMBEDDED / "judge", tmp_path / "judge"))
    assert verified(capsys, tmp_path)[0] == 0
    victim = next(path for path in folder.rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    code, said = verified(capsys, tmp_path)
    assert code == 2 and f"checkpoint file {victim} is damaged" in said


def test_nothing_to_verify_is_an_error(capsys, tmp_path):
    assert "holds neither a finished run" in verified(capsys, tmp_path)[1]
    assert "not found" in verified(capsys, tmp_path / "absent")[1]


def test_the_doctor_is_content_here(capsys):
    code = main(["doctor"])
    said = capsys.readouterr().out
    assert code == 0 and "FAIL" not in said
    for expected in ("packages as pinned", "computes on the CPU", "embedded:video_judge is whole", "without: "):
        assert expected in said


@pytest.mark.parametrize(
    "name, value, said, way_out",
    [
        ("version", lambda package: "0.0.1", "torch 0.0.1 (pinned: ", "pip install -r requirements.txt"),
        ("PYTHONS", ((3, 8), (3, 9)), "(supported: 3.8 to 3.9)", "make the environment with Python 3.8 to 3.9"),
        ("FREE_GIGABYTES", 1e9, "GB free in", "make room"),
    ],
)
def test_the_doctor_says_what_is_wrong_and_what_to_do(capsys, monkeypatch, name, value, said, way_out):
    monkeypatch.setattr(doctor, name, value)
    assert main(["doctor"]) == 2
    printed = capsys.readouterr()
    failed = printed.out.split("FAIL", 1)[1]
    assert said in failed and way_out in failed and "1 checks failed" in printed.err
