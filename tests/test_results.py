"""results/README.md describes every published file, and the columns that it names are those of the files."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import baselines
import reproduce.method
import reproduce.runner
from baselines import find_method
from reproduce.again import largest_difference
from reproduce.figures import GRID_SEED
from reproduce.publish import has_samples

RESULTS = Path(__file__).parent.parent / "results"
PAGE = (RESULTS / "README.md").read_text()
RUN = "*/*/*/seed[0-9]*"


def patterns() -> list[str]:
    """Paths below results/ in the first column of the page's table, with stars for what is in angle brackets."""
    named = [
        name for line in PAGE.splitlines() if line.startswith("| `") for name in re.findall("`([^`]+)`", line.split(" | ")[0])
    ]
    starred = [re.sub("<[^>]+>", "*", name.replace("<run>", RUN)) for name in named]
    return [variant for name in starred for variant in ((name,) if "/" in name else (name, f"*/{name}"))]


def test_what_is_published_stays_small():
    assert sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file()) < 60e6


def test_every_published_file_is_described():
    files = [path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*") if path.is_file() and path.name != "README.md"]
    assert len(files) > 100
    missing = [name for name in files if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns())]
    assert not missing, f"results/README.md lacks a line for {missing[:5]}"


@pytest.mark.parametrize(
    "name, varying",
    [
        ("sets.csv", ()),
        ("cost.csv", ()),
        ("table.csv", ()),
        ("fidelity.csv", ()),
        ("stages.csv", ()),
        ("train.csv", ("reward_", "std_", "weight_", "credit_step_")),
        ("tuning/*.csv", ("alignment", "quality", "aesthetic", "vq", "mq", "ta")),
    ],
)
def test_columns_are_those_that_are_described(name, varying):
    [line] = [line for line in PAGE.splitlines() if line.startswith("| `") and re.search(rf"[`/]{re.escape(name)}`", line[:90])]
    described = set(re.findall("`([a-z_]+)`", line))
    for path in RESULTS.rglob(name):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
            header = next(csv.reader(file))
        assert {column for column in header if not column.startswith(varying or "\0")} <= described, path


def test_manifests_hold_what_is_described():
    [line] = [line for line in PAGE.splitlines() if line.startswith("| `<run>/manifest.json`")]
    for path in RESULTS.glob(f"{RUN}/manifest.json"):
        assert set(json.loads(path.read_text())) <= set(re.findall("`([a-z_]+)`", line)), path


def test_the_way_to_make_runs_of_ones_own_is_as_written(monkeypatch, capsys):
    """The page's command asks for ten runs of the method that README.md adds, and says how to compare them."""
    monkeypatch.setattr(baselines, "find_method", lambda name: dataclasses.replace(find_method("otca"), name=name))
    monkeypatch.setattr(reproduce.runner, "find_method", baselines.find_method)
    asked = []
    monkeypatch.setattr(reproduce.runner, "run_arms", lambda arms, root, jobs: asked.extend(arms))
    train, compare = re.findall(r"^    python -m reproduce\.(?:method|compare) (.*)$", PAGE, re.M)[:2]
    assert reproduce.method.main(train.split()) == 0
    assert [str(arm.path) for arm in asked][::9] == ["image/cpu/worst_first/seed0", "image/cpu/worst_first/seed9"]
    assert capsys.readouterr().out == f"made: {compare} (10 seeds); compare with: python -m reproduce.compare {compare}\n"


def test_arms_by_name(monkeypatch):
    """Seed by seed, each name once, variants with their settings."""
    asked = []
    monkeypatch.setattr(reproduce.runner, "run_arms", lambda arms, root, jobs: asked.extend(arms))
    names = ["otca", "otca_moca@rho0.1", "process_credit@equal", "otca"]
    assert reproduce.method.main([*names, "--tier", "cpu", "--seeds", "2"]) == 0
    assert [(arm.name, arm.seed) for arm in asked] == [(name, seed) for seed in (0, 1) for name in names[:3]]
    assert asked[1].settings == (("credit.rho", 0.1),) and asked[2].settings == (("iterations", 21),)


@pytest.mark.parametrize(
    "argv, said",
    [
        (["otcb"], "unknown method 'otcb'"),
        (["otca@none"], "unknown variant 'otca@none'"),
        (["otca", "--seeds", "-1"], "--seeds -1: give a number above 0, or leave it out"),
        (["otca", "--jobs", "-2"], "--jobs -2: give a number above 0, or leave it out"),
    ],
)
def test_arms_that_cannot_be_made(monkeypatch, capsys, argv, said):
    monkeypatch.setattr(reproduce.runner, "run_arms", lambda *_: pytest.fail("nothing may be trained"))
    assert reproduce.method.main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("method: error: ") and said in error and error.count("\n") == 1


def test_rows_made_again_are_compared_number_by_number():
    """A difference of ¼ in one number; another text, column, length or blank is infinitely far."""
    rows = pd.DataFrame({"skill": ["a", "b"], "value": [1.0, np.nan]})
    assert largest_difference(rows, rows.copy()) == 0
    assert largest_difference(rows, rows.assign(value=[1.25, np.nan])) == 0.25
    for other in (rows.assign(skill=["a", "c"]), rows.assign(value=[1.0, 2.0]), rows[:1], rows.rename(columns={"value": "x"})):
        assert largest_difference(rows, other) == float("inf")


def test_published_runs_come_out_again():
    """On the kind of processor that they were published from, with the same libraries, bit for bit."""
    again = pd.read_csv(RESULTS / "reliability" / "again.csv")
    alike = again[again["hardware"] == again["published_on"]]
    assert len(alike) and alike["same"].all() and (alike["largest_difference"] == 0).all()


def test_samples_are_published_of_the_methods_that_grids_show():
    for media in RESULTS.glob("*/*/*/seed*/media"):
        assert media.parent.name == f"seed{GRID_SEED}" and has_samples(media.parents[1].name), media
    shown = [has_samples(method) for method in ("otca", "process_credit@equal", "otca_tcd@sum", "otca@T5", "otca_tcd@permuted")]
    assert shown == [True, True, True, False, False]
