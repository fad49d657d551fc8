"""``verify`` finds every change of a published run, a table and a checkpoint; ``doctor`` says what is wrong and the way out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import otca.commands.doctor as doctor
import otca.files
from otca.__main__ import main
from otca.errors import InputError

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
    assert re.search(rf"^compared {count} runs, 0 checkpoints, {tables} tables, \d+ data files, \d+ pictures ", said, re.M)


@pytest.mark.parametrize("name", ["config.yaml", "train.csv", "scores.csv.gz", "sets.csv"])
def test_a_changed_or_missing_file_is_named(capsys, run, name):
    path = run / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, said = verified(capsys, run.parents[1])
    assert code == 2 and f"{path} was changed: expected SHA-256" in said and "1 damage in" in said
    path.unlink()
    assert f"{path} is missing" in verified(capsys, run)[1]


def test_an_edited_manifest_is_found(capsys, run):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"budget": {"network_evaluations": 1, "reward_calls": 1}}))
    assert f"{path} was edited" in verified(capsys, run)[1]
    path.write_text("{")
    assert f"{path} is no manifest of a run (Expecting property name" in verified(capsys, run)[1]


@pytest.mark.parametrize(
    "content, said",
    [
        (bytes(range(128, 256)) * 100, "'utf-8' codec can't decode byte 0x80 in position 0: invalid start byte"),
        (b"[" * 100_000, "maximum recursion depth exceeded"),
        (b"[]", "it lacks hash or files"),
        (b'{"hash": "0"}', "it lacks hash or files"),
        (b'{"hash": "0", "files": ["train.csv"]}', "it lacks hash or files"),
    ],
)
def test_what_is_no_manifest_is_told_in_one_short_line(capsys, run, content, said):
    path = run / "manifest.json"
    path.write_bytes(content)
    code, told = verified(capsys, run)
    [line] = [line for line in told.splitlines() if str(path) in line]
    assert code == 2 and "1 damage in" in told and len(line) < len(str(path)) + 150
    assert line.startswith(f"{path} is no manifest of a run ({said}") and line.endswith("); restore it")


@pytest.mark.parametrize("content", [bytes(range(128, 256)) * 100, b"[]", b"{"])
def test_it_is_told_once_where_tables_were_made_from_the_run(capsys, table, content):
    path = table.parents[1] / "image/quick/otca/seed1/manifest.json"
    path.write_bytes(content)
    code, told = verified(capsys, table)
    assert code == 2 and "1 damage in" in told and told.count(f"{path} is no manifest of a run (") == 1


def copy_of_table(folder: Path) -> Path:
    """A copy of the published Table 1 in its place above copies of its runs."""
    results = PUBLISHED.parents[3]
    out = folder / "results"
    for run in json.loads((results / "table1/quick/sources.json").read_text())["runs"]:
        shutil.copytree(results / run, out / run, ignore=shutil.ignore_patterns("media"))
    return Path(shutil.copytree(results / "table1/quick", out / "table1/quick", ignore=shutil.ignore_patterns("*.*g", "*.webp")))


@pytest.fixture
def table(tmp_path):
    return copy_of_table(tmp_path)


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
    assert code == 0 and "compared 12 runs, 0 checkpoints, 1 table: " in said
    rows = table.parents[1] / "image/quick/otca/seed1/train.csv"
    rows.write_text(rows.read_text() + "\n")
    code, said = verified(capsys, table)
    assert code == 2 and "otca/seed1/train.csv was changed" in said and "1 damage in" in said


@pytest.mark.parametrize("name", ["table.csv", "table.md", "table.tex"])
def test_an_edited_or_missing_file_of_a_table_is_named(capsys, table, name):
    (table / name).write_text((table / name).read_text() + "\n")
    code, said = verified(capsys, table)
    assert code == 2 and f"{table / name} was changed: expected SHA-256" in said and "1 damage in" in said
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
    assert code == 2 and expected in said and "1 damage in" in said


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda rows: rows.drop(index=67), "table.csv has 77 rows and 18 columns; its rows give 78 and 18"),
        (lambda rows: rows[rows["method"] != "otca"], "table.csv has 65 rows"),
        (lambda rows: rows.drop(columns="iqm"), "has 78 rows and 17 columns; its rows give 78 and 18"),
        (lambda rows: rows.assign(modality="video"), "it was made from runs of image, and has rows of video"),
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
    assert code == 2 and f"run {run} is missing, from which {table} was made" in said and "compared 11 runs" in said
    for name in ("table8", "table9"):
        shutil.copytree(table, table.parents[1] / name / "quick")
    code, said = verified(capsys, table.parents[1])
    assert code == 2 and said.count(f"run {run} ") == 1
    assert f"run {run} is missing, from which {table} and 2 more tables were made" in said


def test_a_missing_manifest_is_named_once_however_many_tables_need_it(capsys, table):
    path = table.parents[1] / "image/quick/otca_tcd/seed1/manifest.json"
    path.unlink()
    shutil.copytree(table, table.parents[1] / "table9/quick")
    for folder in (table, table.parents[1]):
        code, said = verified(capsys, folder)
        assert code == 2 and said.count("otca_tcd/seed1") == 1
        assert f"{path} is missing; restore it, or delete the run and make it again\n" in said


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "does not say what a table was made from (JSONDecodeError"),
        ("{}", "does not say what a table was made from (KeyError('root'))"),
        ({"root": "/etc"}, "root '/etc'"),
        ({"root": "../../x/.."}, "root '../../x/..'"),
        ({"runs": {}}, "0 runs"),
        ({"runs": {"../../../etc/seed0": ""}}, "lists '../../../etc/seed0', which is no modality/tier/method/seedN"),
        ({"files": {"../table.csv": ""}}, "files ['../table.csv']"),
    ],
)
def test_a_list_of_sources_that_is_none_or_leads_elsewhere_is_refused(capsys, table, content, said):
    path = table / "sources.json"
    whole = json.loads(path.read_text())
    path.write_text(content if isinstance(content, str) else json.dumps(whole | content))
    code, told = verified(capsys, table.parents[1])
    assert code == 2 and str(path) in told and said in told


def test_checkpoints_are_looked_at(capsys, tmp_path):
    folder = Path(shutil.copytree(otca.files.EMBEDDED / "judge", tmp_path / "judge"))
    assert verified(capsys, tmp_path)[0] == 0
    victim, lost = next(folder.rglob("*.safetensors")), folder / "config.json"
    victim.write_bytes(victim.read_bytes()[:-1])
    assert "1 damage in" in verified(capsys, tmp_path)[1]
    lost.unlink()
    code, said = verified(capsys, tmp_path)
    assert code == 2 and "2 integrity_errors in" in said and "compared 0 runs, 1 checkpoint, 0 tables: " in said
    assert f"checkpoint file {victim} is damaged" in said and f"checkpoint file {lost} is missing" in said
    with pytest.raises(InputError, match=r"missing or damaged in all: 2 files\)$"):
        otca.files.verify_hashes(folder)


def test_a_checkpoint_cannot_have_folders_hashed(tmp_path):
    """A listing of somebody else's may name any, such as that of all files of the machine."""
    (tmp_path / "sub").mkdir()
    (tmp_path / otca.files.HASHES).write_text(json.dumps({"sub/": "0", "/": "0"}))
    lines = otca.files.hash_integrity_errors(tmp_path)
    assert [line.split(" (")[0] for line in lines] == [f"checkpoint file {path} is missing" for path in (tmp_path / "sub", "/")]


@pytest.mark.parametrize("content", ['{"model.safetensors": 1, "absent": null}', "[]", "{"])
def test_a_checkpoint_with_a_listing_that_is_none_is_told(capsys, tmp_path, content):
    folder = Path(shutil.copytree(otca.files.EMBEDDED / "judge", tmp_path / "judge"))
    (folder / otca.files.HASHES).write_text(content)
    code, said = verified(capsys, tmp_path)
    assert code == 2 and str(folder) in said and "Traceback" not in said


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
