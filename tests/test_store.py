"""Runs → five files → frames: what is gathered, replaced and rejected, and the same bytes whatever the order."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from eval.store import FILES, Store, finished_runs, gather, publish, run_values
from otca.errors import InputError
from tests.made_runs import EVERY, ITERATIONS, SAMPLES, make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for method in ("base", "static_multi_reward", "otca"):
        for seed in (0, 1):
            make_run(root, method, seed, 0.6)
    return root


def contents(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.folder.rglob("*")) if path.is_file()}


def test_the_files_have_a_row_a_run_and_what_it_was(runs, tmp_path):
    store = publish(finished_runs(runs, "image", "quick"), tmp_path, "image", "quick")
    assert {*FILES.values()} < {*contents(store)} and len(store.runs) == 6
    run = store.runs.set_index(["method", "seed"]).loc["otca", 1]
    assert run["task"] == "otca-image-v2" and json.loads(run["config"])["seed"] == 1 and len(run["hash"]) == 12
    assert "torch" in json.loads(run["versions"]) and run["network_evaluations"] == 100 * ITERATIONS
    values = store.metrics.set_index(["method", "seed", "metric"])["value"]
    assert values["otca", 0, "accuracy"] == pytest.approx(0.6) and values["otca", 1, "diversity"] == pytest.approx(0.41)
    assert set(store.probe["method"]) == {"static_multi_reward", "otca"} and len(store.items) == 60


def test_a_validation_stands_beside_what_was_spent_before_it(runs, tmp_path):
    store = publish(finished_runs(runs, "image", "quick"), tmp_path, "image", "quick")
    curve = store.curves.query("method == 'otca' and seed == 0")
    assert list(curve["samples"]) == [0, EVERY * SAMPLES, ITERATIONS * SAMPLES]
    assert list(curve["network_evaluations"]) == [0, 100 * EVERY, 100 * ITERATIONS]
    assert list(curve["accuracy"]) == pytest.approx([0.3, 0.45, 0.6]) and list(curve["seconds"]) == [0, 3, 6]


def test_publishing_again_or_in_parts_gives_the_same_bytes(runs, tmp_path):
    found = finished_runs(runs, "image", "quick")
    whole = publish(found, tmp_path / "whole", "image", "quick")
    for part in (found[3:], found[:3], found[2:4]):  # the last replaces rows that are there
        parts = publish(part, tmp_path / "parts", "image", "quick")
    assert contents(whole) == contents(parts)


def test_damaged_misplaced_and_mixed_runs_are_errors(runs, tmp_path):
    copy = shutil.copytree(runs, tmp_path / "runs")
    path = copy / "image/quick/otca/seed0"
    with pytest.raises(InputError, match="is of image/quick, not of video/quick"):
        publish([path], tmp_path, "video", "quick")
    old = make_run(tmp_path / "old", "otca", 3, protocol={"task": "otca-image-v1"})
    with pytest.raises(InputError, match="would mix tasks"):
        publish([path, old], tmp_path, "image", "quick")
    rows = pd.read_csv(path / "scores.csv.gz")
    rows.assign(alignment=float("nan")).to_csv(path / "scores.csv.gz", index=False)
    with pytest.raises(InputError, match="alignment has blank or non-finite values"):
        run_values(path)
    with pytest.raises(InputError, match="cannot be published: .*scores.csv.gz is damaged"):
        gather(path)


def test_clips_are_published_as_one_playing_strip(tmp_path):
    make_run(tmp_path / "runs", "otca", 0, modality="video")
    store = publish(finished_runs(tmp_path / "runs", "video", "quick"), tmp_path, "video", "quick")
    assert (store.folder / "gallery/otca.mp4").stat().st_size > 500
    assert list(pd.read_csv(store.folder / "gallery/prompts.csv")["text"]) == ["prompt <0>", "prompt <1>"]  # one a skill
