"""Published results: what changed, is missing, is listed nowhere or lies in another's place is named, in data and in pictures."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import pytest

import reproduce.screenshot
from eval.published import published_files, run_damages, write_listings
from otca.files import sha256, sha256_tree
from reproduce.screenshot import main as screenshot
from tests.processes import ROOT, ran
from tests.test_verify import copy_of_table, verified

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""SHA-256 of "abc" in FIPS 180's example."""
DATA = (
    *("credit_fidelity/b-cells.csv.gz", "fuzz/table.md", "image/quick/cost.csv", "speed/c.json", "tuning/a.csv"),
    *("x/d.jsonl", "x/e.tex"),
)
PICTURES = ("README.md", "image/quick/otca/seed0.png", "index.html", "page.png", "x/f.svg", "x/g.webp", "x/h.mp4")
RUN, MEDIA = "image/quick/otca/seed0", ("0.png", "1.png", "prompts.jsonl")


@pytest.fixture
def results(tmp_path):
    """Results of one table and its runs, with data of other kinds, figures and samples of one run, all listed."""
    folder = copy_of_table(tmp_path).parents[1]
    for name in (*DATA, *PICTURES, *(f"{RUN}/media/{name}" for name in MEDIA)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("abc")
    write_listings(folder)
    return folder


def told(capsys, folder) -> tuple[set[str], str]:
    """The damages that `verify` prints, and its last line and error."""
    code, said = verified(capsys, folder)
    lines = said.splitlines()
    last = next(n for n, line in enumerate(lines) if line.startswith("compared "))
    assert code == (2 if last else 0) and "Traceback" not in said
    assert not last or f"{last} damage{'s' if last > 1 else ''} in {folder}" in said
    return {*lines[:last]}, "\n".join(lines[last:])


# ---------------------------------------------------------------------------------------------------------------- the listings
def test_data_and_pictures_are_listed_apart_and_rows_of_runs_in_neither(results):
    data, pictures = (json.loads((results / name).read_text()) for name in ("sha256.json", "pictures.json"))
    table = {f"table1/quick/{name}" for name in ("sources.json", "table.csv", "table.md", "table.tex")}
    assert {*data} == {*DATA} | table and {data[name] for name in DATA} == {ABC}
    assert {*pictures} == {*PICTURES, f"{RUN}/media/"} and {pictures[name] for name in PICTURES} == {ABC}
    assert [*data] == sorted(data) and [*pictures] == sorted(pictures)


def test_the_hash_of_a_folder_is_what_coreutils_give(tmp_path):
    for name in ("b.png", "a-ä.png", "B 1.webp", "z\nz"):
        (tmp_path / name).write_text(name)
    made = ran(["bash", "-c", "LC_ALL=C; sha256sum -z * | sha256sum"], cwd=tmp_path)
    assert made.stdout.split()[0] == sha256_tree(tmp_path)
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    assert made.stdout.split()[0] != sha256_tree(tmp_path)


def test_whole_results_are_whole_and_the_last_line_says_what_was_compared(capsys, results):
    damages, last = told(capsys, results)
    expected = "compared 12 runs, 0 checkpoints, 1 table, 11 data files, 8 pictures (figures, clips, page, media of a run)"
    assert not damages and last == f"{expected}: {results}"
    assert not told(capsys, results.parent)[0]


def test_after_rendering_ci_compares_data_and_not_pictures(tmp_path):
    """Where pictures come out otherwise, so does the list of their hashes; the data's list must not."""
    [line] = re.findall(r"^git diff --exit-code -- (.*)$", (ROOT / ".ci/run").read_text(), re.M)
    names = ["README.md", *(f"results/{name}" for name in (*DATA, *PICTURES, "pictures.json", "sha256.json"))]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    git = ["git", "-c", "core.quotepath=off"]
    assert ran([*git, "init", "-q"], cwd=tmp_path).returncode == 0
    compared = ran([*git, "ls-files", "--others", "--", *shlex.split(line)], cwd=tmp_path).stdout.split()
    left = {name for name in names if name.endswith((".png", ".svg", ".webp", ".mp4", "pictures.json"))}
    assert len(left) == 6 and {*compared} == {*names} - left


# ---------------------------------------------------------------------------------------------------------------- the damages
def test_data_that_changed_went_or_came_are_named(capsys, results):
    (results / "tuning/a.csv").write_text("abd")
    (results / "speed/c.json").unlink()
    (results / "precision").mkdir()
    (results / "precision/g.csv").write_text("abc")
    damages, last = told(capsys, results)
    [changed] = {line for line in damages if "was changed: expected SHA-256 ba7816bf8f01cfea…, found a52d159f262b2c6d…" in line}
    assert changed.startswith(f"{results / 'tuning/a.csv'} ")
    assert damages - {changed} == {
        f"{results / 'speed/c.json'} is missing",
        f"{results / 'precision/g.csv'} is not listed in {results / 'sha256.json'}",
    }
    assert f"list what is right as it is with python -m reproduce.page --results {results}" in last


def test_pictures_that_changed_went_or_came_are_named(capsys, results):
    for name in ("x/f.svg", "index.html", "README.md", "page.png"):
        (results / name).write_text("abd")
    for name in ("x/g.webp", "x/h.mp4"):
        (results / name).unlink()
    for name in ("table1/quick/new.png", "notes.txt"):
        (results / name).write_text("abc")
    damages, _ = told(capsys, results)
    changed = {line.split(" was changed: ")[0] for line in damages if " was changed: expected SHA-256 ba7816bf" in line}
    assert changed == {str(results / name) for name in ("x/f.svg", "index.html", "README.md", "page.png")}
    assert {line for line in damages if " was changed: " not in line} == {
        *(f"{results / name} is missing" for name in ("x/g.webp", "x/h.mp4")),
        *(f"{results / name} is not listed in {results / 'pictures.json'}" for name in ("table1/quick/new.png", "notes.txt")),
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda media: (media / "0.png").write_text("abd"),
        lambda media: (media / "1.png").unlink(),
        lambda media: (media / "2.png").write_text("abc"),
        lambda media: (media / "0.png").rename(media / "2.png"),
    ],
    ids=["changed", "missing", "new", "renamed"],
)
def test_samples_of_a_run_that_changed_went_or_came_are_told(capsys, results, change):
    change(results / RUN / "media")
    [line], _ = told(capsys, results)
    assert line.startswith(f"{results / RUN / 'media'} holds other files than it did: expected SHA-256 ")


def test_samples_of_a_run_that_all_went_are_told(capsys, results):
    shutil.rmtree(results / RUN / "media")
    assert told(capsys, results)[0] == {f"{results / RUN / 'media'} is missing"}


def test_a_file_of_a_run_that_nothing_lists_is_told(capsys, results):
    for name in ("extra.csv", "train2.png", "deeper/train.csv"):
        (results / RUN / name).parent.mkdir(exist_ok=True)
        (results / RUN / name).write_text("abc")
    shutil.copytree(results / RUN / "media", results / "image/quick/otca/seed1/media")
    assert told(capsys, results)[0] == {
        *(
            f"{results / RUN / name} is not listed in {results / RUN / 'manifest.json'}"
            for name in ("extra.csv", "train2.png", "deeper/train.csv")
        ),
        f"{results / 'image/quick/otca/seed1/media'} is not listed in {results / 'pictures.json'}",
    }


def test_a_changed_table_that_two_lists_have_is_one_damage(capsys, results):
    path = results / "table1/quick/table.md"
    path.write_text(path.read_text() + "\n")
    [line], _ = told(capsys, results)
    assert line.startswith(f"{path} was changed")


@pytest.mark.parametrize("lost", [["sha256.json"], ["pictures.json"], ["sha256.json", "pictures.json"]])
def test_a_missing_listing_is_told_with_the_command_that_writes_it(capsys, results, lost):
    """From the folder, or from one above; a table, or the runs alone, need none."""
    for name in lost:
        (results / name).unlink()
    expected = {
        f"{results / name} is missing: restore it, or write it with python -m reproduce.page --results {results}" for name in lost
    }
    damages, last = told(capsys, results)
    assert damages == told(capsys, results.parent)[0] == expected
    assert ("0 data files" in last, "0 pictures" in last) == ("sha256.json" in lost, "pictures.json" in lost)
    assert not told(capsys, results / "table1")[0] and not told(capsys, results / "image")[0]
    write_listings(results)
    assert not told(capsys, results)[0]


@pytest.mark.parametrize("name", ["sha256.json", "pictures.json"])
@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "not JSON"),
        ("[]", "holds a list and no object"),
        ('{"../../a.csv": "0"}', "../../a.csv is missing"),
        (b"\xff", "utf-8"),
    ],
)
def test_a_listing_that_is_none_or_leads_elsewhere_is_told(capsys, results, name, content, said):
    (results.parents[1] / "a.csv").write_text("abc")
    (results / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert [line for line in told(capsys, results)[0] if said in line and str(results) in line]


def test_names_that_no_terminal_can_show_are_escaped(capsys, results):
    """A name of bytes that are no UTF-8, and one with a line's end and a terminal's escape."""
    (results / "x\udcff.csv").write_text("abc")
    (results / "y\n\x1b[2J.png").write_text("abc")
    assert {line.rsplit("/", 1)[0] for line in told(capsys, results)[0]} == {
        rf"{results / 'x'}\udcff.csv is not listed in {results}",
        rf"{results / 'y'} \x1b[2J.png is not listed in {results}",
    }
    write_listings(results)
    assert not told(capsys, results)[0]


# ---------------------------------------------------------------------------------------------------------------- the runs
@pytest.mark.parametrize(
    "place", ["image/quick/otca/seed77", "image/quick/otca/seed0-copy", "image/quick/otca/old/seed0", "seed0"]
)
def test_a_copy_of_a_run_in_another_place_is_told(capsys, results, place):
    shutil.copytree(results / "image/quick/otca/seed1", results / place)
    assert told(capsys, results)[0] == {
        f"run {results / place} is that of image/quick/otca/seed1 by its manifest; move it there, or delete this copy"
    }
    write_listings(results)  # listing all anew does not make it right
    assert len(told(capsys, results)[0]) == 1


def test_a_run_of_no_table_is_told_while_all_tables_can_be_read(capsys, results):
    """What the runs of a table without its list are runs of cannot be known."""
    run = "image/quick/static_multi_reward/seed0"
    path = results / "table1/quick/sources.json"
    content = json.loads(path.read_text())
    del content["runs"][run]
    path.write_text(json.dumps(content))
    damages, _ = told(capsys, results)
    assert f"run {results / run} is in no table (sources.json of none names it); make its table again, or delete it" in damages
    path.unlink()
    damages, _ = told(capsys, results)
    assert damages == {f"{path} is missing"}


def test_a_run_without_its_manifest_is_told_once(capsys, results):
    """One that a table was made from, and one that none knows; their other files are no damages."""
    unknown = "image/quick/otca/seed9"
    shutil.copytree(results / RUN, results / unknown, ignore=shutil.ignore_patterns("media"))
    for run in (RUN, unknown):
        (results / run / "manifest.json").unlink()
    assert told(capsys, results)[0] == {
        f"{results / run / 'manifest.json'} is missing; restore it, or delete the run and make it again" for run in (RUN, unknown)
    }


def test_every_published_run_is_in_its_place_and_in_a_table():
    files = published_files(ROOT / "results")
    assert len(files.runs) >= 613 and run_damages(files) == []


# ---------------------------------------------------------------------------------------------------------------- the picture
def test_a_new_picture_of_the_page_is_listed_and_nothing_else_anew(capsys, results, monkeypatch):
    """What else was changed is not made right by it."""
    monkeypatch.setattr(reproduce.screenshot, "take", lambda page, place, out: out.write_text("new"))
    (results / "x/f.svg").write_text("abd")
    before = json.loads((results / "pictures.json").read_text())
    for out in ("page.png", "a.png"):
        assert screenshot(["--page", str(results / "index.html"), "--out", str(results / out)]) == 0
    after = json.loads((results / "pictures.json").read_text())
    new = sha256(results / "page.png")
    assert after == before | {"page.png": new, "a.png": new} and [*after] == sorted(after) and new != ABC
    [line], _ = told(capsys, results)
    assert line.startswith(f"{results / 'x/f.svg'} was changed")
    assert screenshot(["--out", str(results.parent / "alone.png")]) == 0
    assert not (results.parent / "pictures.json").exists()
