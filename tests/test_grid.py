"""A grid of runs in submitit's jobs: shared, resumed, looked over; and which runs the standardised numbers take."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import submitit
import torch

from otca import presets
from otca.errors import TrainingError
from otca.files import run_lock
from otca.runs import RunSpec
from reproduce.all import TABLES, arms
from reproduce.costs import COLUMNS, total_cost_line
from reproduce.grid import Job, _failures, _refuse_unfinished, progress, progress_text
from reproduce.runner import arm_config
from reproduce.table import BEYOND
from tests.grids import finished, grid_of, worker_of
from tests.test_survival_tables import TABLE, tiny_tier


@pytest.fixture
def tiny(monkeypatch, untrained_pipeline):
    tiny_tier(monkeypatch, untrained_pipeline)
    return TABLE.arms("tiny")


def test_the_seeds_of_the_standardised_numbers():
    """10 paired seeds for the headline arms, 5 for the other arms of Tables 1 to 4, 3 for the wide grid, images only."""
    counts = Counter((arm.modality, arm.name) for arm in arms("cpu"))
    assert len(arms("cpu")) == len(set(arms("cpu")))
    for modality in ("image", "video"):
        for name in ("base", "uniform_grpo", "static_multi_reward", "otca", *BEYOND):
            assert counts[modality, name] == 10
        assert counts[modality, "otca_tcd"] == counts[modality, "otca_moca"] == 5
    others = {name: n for (modality, name), n in counts.items() if n not in (5, 10)}
    assert set(others.values()) == {3} and {"flow_grpo", "otca_moca@rho0", "diffusion_nft"} <= set(others)
    assert {name for modality, name in counts if modality == "video"} < {name for modality, name in counts if modality == "image"}
    for table in TABLES[:3]:
        assert not {*BEYOND} & {*table.rows("quick")} and table.rows("cpu")[-3:] == BEYOND
    assert [arm.seed for arm in arms("cpu")] != sorted(arm.seed for arm in arms("cpu"))  # the paper's tables come first


def test_what_was_tuned_for_a_method_comes_before_what_it_sets(monkeypatch):
    monkeypatch.setitem(presets.TUNED, "image/cpu", {"otca": {"optimizer.learning_rate": 7e-4}})
    assert arm_config(RunSpec("image", "cpu", "otca", 0)).optimizer.learning_rate == 7e-4
    assert (
        arm_config(RunSpec("image", "cpu", "otca", 0, "x", (("optimizer.learning_rate", 1e-3),))).optimizer.learning_rate == 1e-3
    )
    assert arm_config(RunSpec("image", "cpu", "otca_moca", 0)).optimizer.learning_rate != 7e-4


def test_progress(tiny, tmp_path):
    """One finished, one in work at half its iterations, one untouched: 8 + 5 seconds each, of their modality's mean."""
    base, static, _ = (tmp_path / arm.path for arm in tiny)
    assert "3 left; time left with 2 jobs: unknown until a run is finished" in progress_text(tiny, tmp_path, 2)
    base.mkdir(parents=True)
    (base / "manifest.json").write_text("{}")
    (base / "cost.json").write_text(json.dumps({"train_seconds": 8.0, "evaluate_seconds": 5.0}))
    with run_lock(static):
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
    with run_lock(tmp_path / tiny[0].path):
        failed = Job(tuple(tiny), tmp_path)()
    assert len(failed) == 2 and failed[0].startswith("image static_multi_reward seed 0: policy.path /nowhere: no model_index")
    assert not (tmp_path / tiny[0].path / "manifest.json").exists()


def test_a_grid_is_made_by_jobs_side_by_side(tmp_path, untrained_pipeline):
    for _ in range(2):  # the second start finds nothing to do
        done = grid_of(tmp_path, untrained_pipeline, 3, 2)
        assert done.returncode == 0, done.stdout + done.stderr
    assert finished(tmp_path) == set(TABLE.methods)
    jobs = {path.name.partition("_")[0] for path in (tmp_path / "runs/grid").glob("*_log.out")}
    assert len(jobs) == 2


def test_a_grid_with_runs_missing_says_so(tiny, tmp_path, untrained_pipeline):
    """Exit code 2 and one line where the only job was killed, and where another process has a run; the same command goes on."""
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(grid_of, tmp_path, untrained_pipeline, 2, 1)
        os.kill(worker_of(tmp_path), signal.SIGKILL)
        killed = ended.result()
    left = 2 - len(finished(tmp_path))
    lost, said = killed.stderr.splitlines()
    assert killed.returncode == 2 and re.fullmatch(r"job \d+ ended without a result; its log: .*/runs/grid/\d+_0_log.err", lost)
    assert re.fullmatch(
        rf"grid: error: {left} of 2 runs are unfinished \(the first: image .* seed 0\); the same command goes on", said
    )
    with run_lock(tmp_path / "runs" / tiny[1].path):
        done = grid_of(tmp_path, untrained_pipeline, 2, 1)
    assert done.returncode == 2 and finished(tmp_path) == {"base"}
    assert done.stderr.splitlines() == [
        "grid: error: 1 of 2 runs are still in work in other processes (the first: image static_multi_reward seed 0); start the "
        "same command again when those have ended"
    ]


def test_a_job_that_is_told_to_end_leaves_no_result(tmp_path, monkeypatch):
    """It would be a success of submitit's else. A job of Slurm leaves the signal to submitit."""
    monkeypatch.setattr(Job, "_work", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    passed = []
    before = signal.signal(signal.SIGTERM, lambda *_: passed.append("SIGTERM"))
    try:
        with pytest.raises(SystemExit) as ended:
            Job((), tmp_path)()
        assert ended.value.code == 143 and not passed
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        assert Job((), tmp_path)() == [] and passed == ["SIGTERM"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "outcome, lines, said",
    [
        (("success", ["image otca seed 0: x"]), ["image otca seed 0: x"], ""),
        (("error", "Traceback …"), [], "job 7 ended without a result; its log: {log}\n"),
        (None, [], "job 7 ended without a result; its log: {log}\n"),
    ],
)
def test_what_a_job_leaves(outcome, lines, said, tmp_path, capsys):
    """Lines of arms that failed; of a job that broke, or was killed, the log's name and no traceback."""
    job = submitit.LocalJob(tmp_path, "7")
    if outcome is not None:
        job.paths.result_pickle.write_bytes(pickle.dumps(outcome))
    assert _failures(job) == lines
    assert capsys.readouterr().err == said.format(log=tmp_path / "7_0_log.err")


def test_what_failed_and_what_others_have_is_told_apart(tiny, tmp_path):
    with run_lock(tmp_path / tiny[0].path):
        with pytest.raises(TrainingError, match="3 of 3 runs are unfinished, 1 of them in work in other processes"):
            _refuse_unfinished(tiny, tmp_path, [])
        with pytest.raises(TrainingError, match="1 runs failed, the first: x; mend that"):
            _refuse_unfinished(tiny, tmp_path, ["x"])


def test_the_cost_of_a_tier_is_the_sum_of_its_runs(tmp_path):
    """1.5 hours of training on one modality, half an hour each of training and evaluation on the other: 2.5 core hours."""
    for modality, train, evaluate, machine in (("image", 5400, 0, "B"), ("video", 1800, 1800, "A")):
        (tmp_path / modality).mkdir()
        (tmp_path / modality / "cost.csv").write_text(f"{','.join(COLUMNS)}\nbase,0,{train},{evaluate},{machine}\n")
    assert total_cost_line([tmp_path / modality / "cost.csv" for modality in ("image", "video")]) == (
        "Measured: 2 runs, 2.0 hours of training and 0.5 of evaluation on one core each: about 1.2 hours on two (A; B)."
    )
