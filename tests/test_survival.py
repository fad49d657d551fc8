"""Killed anywhere and started again, a training ends with the files of one that was not; signals leave an iteration's end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time

import pandas as pd
import pytest
import torch
from accelerate import Accelerator

import otca.checkpoint
import otca.sampling
import otca.trainer
import otca.update
from otca.__main__ import main
from otca.checkpoint import prunable
from otca.signals import LAST_CALL
from otca.tracking import RowLog
from otca.validation import Validation
from tests.killed import code_of, content, dying, finish, start, wait_for
from tests.test_trainer import Brightness

ITERATIONS = 4


def command(pipeline: str, folder, *more: str) -> list[str]:
    """A training with everything that has a state: moments, an average, a reference, a validation, old checkpoints that go."""
    settings = {
        "policy.path": pipeline,
        "out": folder,
        "iterations": ITERATIONS,
        "rewards": "[tests.test_trainer:Brightness,tests.test_trainer:Redness]",
        "prompts_per_iteration": 2,
        "group_size": 2,
        "micro_batch": 2,
        "sampler.steps": 3,
        "save_every": 1,
        "keep_last": 2,
        "loss.kl_beta": 0.1,
        "optimizer.ema_decay": 0.5,
        "optimizer.learning_rate": 1e-3,
        "validation.every": 2,
        "validation.prompts": 2,
        "validation.samples_per_prompt": 1,
        "validation.steps": 2,
    }
    return ["train", *(f"--{key}={value}" for key, value in settings.items()), *more]


@pytest.fixture(scope="module")
def whole(untrained_pipeline, tmp_path_factory):
    """Files of a run that nothing stopped, and the seconds it took."""
    folder, started = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    finish(lambda: main(command(untrained_pipeline, folder)))
    return content(folder), time.monotonic() - started


def test_what_a_run_leaves(whole):
    files, _ = whole
    kept = {name.split("/")[1] for name in files if name.startswith("checkpoints/")}
    assert kept >= {"iteration_000003", "iteration_000004"} and len(kept) <= 3  # the last two, and the best if it is older
    assert {"train.csv", "validation.csv", "config.yaml"} <= set(files)
    assert {"optimizer.safetensors", "average.safetensors", "state.json", "sha256.json"} <= {n.split("/")[-1] for n in files}


PHASES = {
    "rollout": (otca.sampling, "_trajectories", 3, False),
    "decode": (otca.sampling, "condition_of", 4, False),
    "scoring": (Brightness, "score", 3, False),
    "backward": (Accelerator, "backward", 11, True),
    "optimizer step": (torch.optim.AdamW, "step", 3, True),
    "average": (torch, "_foreach_lerp_", 3, False),
    "row": (RowLog, "append", 4, True),
    "row without its time": (RowLog, "append", 5, False),
    "validation": (Validation, "_scored", 2, False),
    "checkpoint begun": (otca.checkpoint, "save_file", 3, False),
    "checkpoint half-written": (otca.checkpoint, "save_file", 4, True),
    "checkpoint without hashes": (otca.checkpoint, "write_hashes", 2, False),
    "checkpoint not in place": (otca.checkpoint, "flush_tree", 3, True),
    "checkpoint in place": (otca.checkpoint, "flush_tree", 4, True),
    "old checkpoint half-removed": (otca.checkpoint, "remove_prunable", 3, False),
}
EVERY_TIME = ("optimizer step", "checkpoint half-written", "validation")
"""Phases that the quick suite tries."""


@pytest.mark.parametrize("phase", [p if p in EVERY_TIME else pytest.param(p, marks=pytest.mark.slow) for p in PHASES])
def test_killed_in_a_phase(phase, whole, untrained_pipeline, tmp_path, monkeypatch):
    again = command(untrained_pipeline, tmp_path / "run")
    with monkeypatch.context() as patched:
        dying(patched, *PHASES[phase])
        assert code_of(start(lambda: main(again))) == -signal.SIGKILL
    finish(lambda: main(again))
    assert content(tmp_path / "run") == whole[0]
    assert pd.read_csv(tmp_path / "run" / "train.csv")["iteration"].tolist() == list(range(ITERATIONS))
    assert len(pd.read_csv(tmp_path / "run" / "timing.csv")) == ITERATIONS


def killed_at(share: float, seconds: float, function) -> None:
    """Start a function's process, and kill it after a share of the seconds that it takes."""
    pid = start(function)
    time.sleep(share * seconds)
    os.kill(pid, signal.SIGKILL)
    code_of(pid)


@pytest.mark.parametrize("points", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_points(points, whole, untrained_pipeline, tmp_path):
    files, seconds = whole
    shares = random.Random(points)
    for point in range(points):
        again = command(untrained_pipeline, tmp_path / str(point))
        killed_at(shares.uniform(0.02, 0.98), seconds, lambda again=again: main(again))
        finish(lambda again=again: main(again))
        assert content(tmp_path / str(point)) == files


def reached(folder) -> int:
    """Rows in train.csv."""
    with contextlib.suppress(FileNotFoundError, pd.errors.EmptyDataError):
        return len(pd.read_csv(folder / "train.csv"))
    return 0


@pytest.mark.parametrize("number, said", [(signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "interrupted")])
def test_signals_leave_an_iterations_end(number, said, whole, untrained_pipeline, tmp_path):
    """Exit code 128 + signal within 30 seconds, a checkpoint of the last iteration's end, and no trace at the end."""
    folder = tmp_path / "run"
    again = command(untrained_pipeline, folder)
    seldom = [*again, "--save_every=4", "--validation.every=0"]
    pid = start(lambda: main(seldom), tmp_path / "said")
    wait_for(lambda: reached(folder) >= 1)
    os.kill(pid, number)
    started = time.monotonic()
    assert code_of(pid) == 128 + number and time.monotonic() - started < LAST_CALL + 2
    done, last = reached(folder), (tmp_path / "said").read_text().splitlines()[-1]
    assert 1 <= done < ITERATIONS and (folder / f"checkpoints/iteration_{done:06d}").is_dir()
    assert last.endswith(f"otca train: {said}; the same command goes on from iteration {done}")
    finish(lambda: main(seldom))
    left, right = content(folder), whole[0]
    newest = [name for name in right if "iteration_000004" in name]
    assert newest and {name: left[name] for name in newest} == {name: right[name] for name in newest}
    assert left["train.csv"] == right["train.csv"]
    assert {name.split("/")[1] for name in left if name.startswith("checkpoints/")} == {"iteration_000004"}


def test_a_signal_in_an_update_waits_for_its_end(untrained_pipeline, tmp_path, monkeypatch):
    """Between the first optimizer step and the row the weights belong to no iteration's end."""
    folder, original = tmp_path / "run", torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return out

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", step)
        assert code_of(start(lambda: main(command(untrained_pipeline, folder)))) == 143
    assert reached(folder) == 1 and (folder / "checkpoints/iteration_000001").is_dir()


@pytest.mark.parametrize("deaf", [False, True])
def test_who_does_not_come_to_an_end_is_stopped(deaf, monkeypatch):
    """A put-off signal acts after its grace; code that never answers is ended by the last call."""
    import otca.signals
    from otca.signals import defer_signals, run_command

    monkeypatch.setattr(otca.signals, "GRACE", 0.2)
    monkeypatch.setattr(otca.signals, "LAST_CALL", 1.0)

    def stubborn():
        with defer_signals(lambda: True):
            os.kill(os.getpid(), signal.SIGTERM)
            end = time.monotonic() + 10
            while time.monotonic() < end:
                with contextlib.suppress(BaseException if deaf else ()):
                    time.sleep(0.05)

    started = time.monotonic()
    assert code_of(start(lambda: run_command("stubborn", stubborn))) == 143
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "found, best, gone",
    [
        ([1, 2, 3, 4], None, [1, 2]),
        ([1, 2, 3, 4], 1, [2]),
        ([2, 4, 5], None, [2]),
        ([2, 3, 4], None, [3]),  # 3 was written on the way out
        ([2], 2, []),
    ],
)
def test_which_checkpoints_stay(found, best, gone):
    every = 1 if found == [1, 2, 3, 4] else 2
    assert prunable(found, every, 2, best) == gone
