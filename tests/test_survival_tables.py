"""A table's command, killed anywhere and started again, ends with the runs and tables of one that was not."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import eval.evaluate
import eval.tables
import reproduce.runner
import reproduce.table
from otca import presets
from otca.runs import is_finished
from reproduce.table import Table
from tests.killed import code_of, content, dying, finish, start, wait_for
from tests.test_distributed import ROOT

TABLE = Table(
    name="tiny",
    title="A tiny table",
    media=("image",),
    methods=("base", "static_multi_reward", "otca"),
    primary="accuracy",
    notes=("Three arms.",),
)


@pytest.fixture
def here(tmp_path, monkeypatch, untrained_pipeline):
    """A working folder, and a tier of two iterations and three pictures."""
    tiny_tier(monkeypatch, untrained_pipeline)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def tiny_tier(monkeypatch, pipeline):
    settings = {"iterations": 2, "prompts_per_iteration": 2, "group_size": 2, "sampler.steps": 2, "save_every": 1}
    monkeypatch.setitem(presets.TRAIN, "image/tiny", settings | {"policy.path": pipeline})
    monkeypatch.setitem(presets.EVAL, "image/tiny", {"prompts": 6, "samples_per_prompt": 1, "steps": 2})
    monkeypatch.setitem(presets.SEEDS, "tiny", 1)


def made(jobs: int = 1) -> int:
    """The command, without what it prints."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        return TABLE.main("", ["--tier", "tiny", "--jobs", str(jobs)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, untrained_pipeline):
    """Files of a table that nothing stopped, and the seconds it took."""
    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patched:
        tiny_tier(patched, untrained_pipeline)
        patched.chdir(folder)
        started = time.monotonic()
        finish(made)
    return content(folder / "runs"), time.monotonic() - started


def test_what_a_table_leaves(whole):
    files, _ = whole
    assert {"tiny/tiny/table.csv", "tiny/tiny/table.md", "tiny/tiny/table.tex", "tiny/tiny/grid.png"} <= set(files)
    assert {f"image/tiny/{method}/seed0/manifest.json" for method in TABLE.methods} <= set(files)


PHASES = {
    "media": (eval.evaluate, "write_media", 1, True),
    "scores without sets": (eval.evaluate, "write_rows", 2, False),
    "no manifest": (reproduce.runner, "finish_run", 2, False),
    "table": (eval.tables, "write_atomic", 2, False),
    "figures": (reproduce.table, "draw_figures", 1, False),
}
EVERY_TIME = ("scores without sets", "table")


@pytest.mark.parametrize("phase", [p if p in EVERY_TIME else pytest.param(p, marks=pytest.mark.slow) for p in PHASES])
def test_killed_in_a_phase(phase, here, whole, monkeypatch):
    """What dies in training and evaluation is a worker, and its parent says so; the table is written by the parent."""
    with monkeypatch.context() as patched:
        dying(patched, *PHASES[phase])
        pid = start(made, here.parent / "said")
        assert code_of(pid) == (-signal.SIGKILL if phase in ("table", "figures") else 2)
    if phase not in ("table", "figures"):
        assert "tiny: error: a worker was killed from outside" in (here.parent / "said").read_text().splitlines()[-1]
    finish(made)
    assert content(here) == whole[0]


@pytest.mark.parametrize("points", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_points(points, here, whole, monkeypatch):
    """The parent is killed; its workers go with it, and leave their runs to the next start."""
    shares = random.Random(points)
    for point in range(points):
        (here.parent / str(point)).mkdir()
        monkeypatch.chdir(here.parent / str(point))
        pid = start(made)
        time.sleep(shares.uniform(0.02, 0.98) * whole[1])
        os.kill(pid, signal.SIGKILL)
        code_of(pid)
        time.sleep(0.5)  # the workers look after their parent ten times a second
        finish(made)
        assert content(Path("runs")) == whole[0]


@pytest.mark.parametrize("number, said", [(signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "interrupted")])
def test_signals_reach_the_workers(number, said, here, whole):
    """Both arms that are in training keep their iteration's end, and the command ends in one line."""
    pid = start(lambda: made(jobs=2), here.parent / "said")
    wait_for(lambda: len(list(here.glob("image/tiny/*/seed0/train.csv"))) == 2)
    os.kill(pid, number)
    assert code_of(pid) == 128 + number
    last = (here.parent / "said").read_text().splitlines()[-1]
    assert last == f"tiny: {said}; the same command goes on where its runs stopped"
    assert not all(is_finished(here / arm.path) for arm in TABLE.arms("tiny"))
    finish(made)
    assert content(here) == whole[0]


# --------------------------------------------------------------------------------------------------------- two processes
def launched(folder: Path, pipeline: str) -> subprocess.Popen:
    """A training in two processes, which torchrun watches."""
    settings = {
        "out": folder,
        "policy.path": pipeline,
        "rewards": "[tests.test_trainer:Brightness,tests.test_trainer:Redness]",
        "prompts_per_iteration": 4,
        "group_size": 2,
        "micro_batch": 2,
        "iterations": 8,
        "sampler.steps": 3,
        "save_every": 2,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "otca", "train"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [*command, *(f"--{key}={value}" for key, value in settings.items())],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def children(pid: int) -> list[int]:
    """Pids of a process's children, in the order of their ranks."""
    return sorted(int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


@pytest.fixture(scope="module")
def whole_of_two(untrained_pipeline, tmp_path_factory):
    """Files of a training in two processes that nothing stopped."""
    folder = tmp_path_factory.mktemp("two") / "run"
    assert launched(folder, untrained_pipeline).wait(timeout=240) == 0
    return content(folder)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_is_killed(rank, whole_of_two, untrained_pipeline, tmp_path):
    """The other one stops within a minute, and the same command ends with the files of a run that nothing stopped."""
    process = launched(tmp_path / "run", untrained_pipeline)
    wait_for(lambda: (tmp_path / "run/checkpoints/iteration_000002").is_dir(), 120)
    ranks = children(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[rank], signal.SIGKILL)
    started = time.monotonic()
    assert process.wait(timeout=60) != 0 and time.monotonic() - started < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    assert launched(tmp_path / "run", untrained_pipeline).wait(timeout=240) == 0
    assert content(tmp_path / "run") == whole_of_two
    assert "checkpoints/iteration_000008/optimizer.safetensors" in whole_of_two
