"""A grid of runs in submitit's jobs: shared, resumed, looked over; and which runs the standardised numbers take."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest
import torch

from otca import presets
from otca.files import held
from otca.runs import Arm
from reproduce.all import TABLES, arms
from reproduce.costs import COLUMNS, total_cost_line
from reproduce.grid import Job, progress, progress_text
from reproduce.runner import arm_config
from reproduce.table import BEYOND
from tests.processes import ran
from tests.test_distributed import ROOT
from tests.test_survival_tables import TABLE, tiny_tier


@pytest.fixture
def tiny(monkeypatch, untrained_pipeline):
    tiny_tier(monkeypatch, untrained_pipeline)
    return TABLE.arms("tiny")


def test_the_seeds_of_the_standardised_numbers():
    """10 paired seeds for the headline arms, 5 for the other arms of Tables 1 to 4, 3 for the wide grid, images only."""
    counts = Counter((arm.medium, arm.name) for arm in arms("cpu"))
    assert len(arms("cpu")) == len(set(arms("cpu")))
    for medium in ("image", "video"):
        for name in ("base", "uniform_grpo", "static_multi_reward", "otca", *BEYOND):
            assert counts[medium, name] == 10
        assert counts[medium, "otca_tcd"] == counts[medium, "otca_moca"] == 5
    others = {name: n for (medium, name), n in counts.items() if n not in (5, 10)}
    assert set(others.values()) == {3} and {"flow_grpo", "otca_moca@rho0", "diffusion_nft"} <= set(others)
    assert {name for medium, name in counts if medium == "video"} < {name for medium, name in counts if medium == "image"}
    for table in TABLES[:3]:
        assert not {*BEYOND} & {*table.rows("quick")} and table.rows("cpu")[-3:] == BEYOND
    assert [arm.seed for arm in arms("cpu")] != sorted(arm.seed for arm in arms("cpu"))  # the paper's tables come first


def test_what_was_tuned_for_a_method_comes_before_what_it_sets(monkeypatch):
    monkeypatch.setitem(presets.TUNED, "image/cpu", {"otca": {"optimizer.learning_rate": 7e-4}})
    assert arm_config(Arm("image", "cpu", "otca", 0)).optimizer.learning_rate == 7e-4
    assert arm_config(Arm("image", "cpu", "otca", 0, "x", (("optimizer.learning_rate", 1e-3),))).optimizer.learning_rate == 1e-3
    assert arm_config(Arm("image", "cpu", "otca_moca", 0)).optimizer.learning_rate != 7e-4


def test_progress(tiny, tmp_path):
    """One finished, one in work at half its iterations, one untouched: 8 + 5 seconds each, of their medium's mean."""
    base, static, _ = (tmp_path / arm.path for arm in tiny)
    assert "3 left; time left with 2 jobs: unknown until a run is finished" in progress_text(tiny, tmp_path, 2)
    base.mkdir(parents=True)
    (base / "manifest.json").write_text("{}")
    (base / "cost.json").write_text(json.dumps({"train_seconds": 8.0, "evaluate_seconds": 5.0}))
    with held(static):
        (static / "train.csv").write_text("iteration,loss\n0,1.0\n")
        table = progress(tiny, tmp_path).set_index("method")
        text = progress_text(tiny, tmp_path, 1)
    assert table[["done", "running", "left"]].to_numpy().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert table["seconds_left"].tolist() == [0, 6.5, 13]
    assert "1 done / 1 running / 1 left; time left with 1 jobs: 0.0 hours" in text
    assert progress(tiny, tmp_path).set_index("method").loc["static_multi_reward", ["running", "left"]].tolist() == [0, 1]


def test_a_job_passes_over_what_is_in_other_hands_and_names_what_fails(tiny, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setitem(presets.TRAIN, "image/tiny", presets.TRAIN["image/tiny"] | {"policy.path": "/nowhere"})
    with held(tmp_path / tiny[0].path):
        failed = Job(tuple(tiny), tmp_path)()
    assert len(failed) == 2 and failed[0].startswith("image static_multi_reward seed 0: policy.path /nowhere: no model_index")
    assert not (tmp_path / tiny[0].path / "manifest.json").exists()


GRID = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import pytest
from reproduce import grid
from tests.test_survival_tables import TABLE, tiny_tier
patched = pytest.MonkeyPatch()
tiny_tier(patched, {pipeline!r})
grid.WATCH_SECONDS = 1.0
class Job(grid.Job):
    def __call__(self):
        tiny_tier(patched, {pipeline!r})  # a job is another process, to which the tier is new
        return super().__call__()
grid.Job = Job
print(grid.run_grid(TABLE.arms("tiny"), Path("runs"), 2))
"""


def test_a_grid_is_made_by_jobs_side_by_side(tmp_path, untrained_pipeline):
    script = tmp_path / "grid.py"
    script.write_text(GRID.format(root=str(ROOT), pipeline=untrained_pipeline))
    for _ in range(2):  # the second start finds nothing to do
        done = ran([sys.executable, script], cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
    made = {path.parent.parent.name for path in tmp_path.glob("runs/image/tiny/*/seed0/manifest.json")}
    assert made == set(TABLE.methods)
    jobs = {path.name.partition("_")[0] for path in (tmp_path / "runs/grid").glob("*_log.out")}
    assert len(jobs) == 2


def test_the_cost_of_a_tier_is_the_sum_of_its_runs(tmp_path):
    """1.5 hours of training on one medium, half an hour each of training and evaluation on the other: 2.5 core hours."""
    for medium, train, evaluate, machine in (("image", 5400, 0, "B"), ("video", 1800, 1800, "A")):
        (tmp_path / medium).mkdir()
        (tmp_path / medium / "cost.csv").write_text(f"{','.join(COLUMNS)}\nbase,0,{train},{evaluate},{machine}\n")
    assert total_cost_line([tmp_path / medium / "cost.csv" for medium in ("image", "video")]) == (
        "Measured: 2 runs, 2.0 hours of training and 0.5 of evaluation on one core each: about 1.2 hours on two (A; B)."
    )
