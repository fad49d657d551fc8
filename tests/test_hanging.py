"""Rewards that hang: the run stops in time, in one line, after a checkpoint; those that end in time give the same bits."""

from __future__ import annotations

import contextvars
import signal
import sys
import threading
import time

import pytest
import torch

from otca.__main__ import main
from otca.checkpoint import checkpoints
from otca.errors import RewardError
from otca.rewards.base import AsyncScoring, score_all
from otca.rewards.workers import Workers
from tests.processes import ran
from tests.servers import Told, blank
from tests.toys import Brightness

HERE = contextvars.ContextVar("HERE", default="elsewhere")


@pytest.fixture
def gate():
    """What a test's hanging reward waits for; it is let go at the end."""
    out = threading.Event()
    yield out
    out.set()


def limited(reward, seconds):
    """The reward with a limit, as `build_reward` gives it."""
    reward.seconds = seconds
    return reward


class Computes(Brightness):
    """Computes without end after ``good`` good calls."""

    name, good = "computes", 1

    def score(self, media_BFCHW, prompts):
        type(self).good -= 1
        if type(self).good >= 0:
            return super().score(media_BFCHW, prompts)
        value = torch.rand(64, 64)
        while True:
            value = (value @ value).clamp(0, 1)


@pytest.mark.parametrize("late", [1, 0])
def test_a_reward_that_hangs_is_named_with_its_prompts_and_the_setting(gate, late):
    """Whether it is asked first or last."""
    rewards = [limited(Told(torch.ones(5)), 60.0), limited(Told(None, gate.wait), 0.2)][:: 1 if late else -1]
    started = time.perf_counter()
    with pytest.raises(RewardError) as caught:
        score_all(rewards, *blank(5))
    assert 0.2 <= time.perf_counter() - started < 2
    assert str(caught.value) == (
        "reward 'told' has not scored 5 prompts: 0 ('x'), 1 ('x'), 2 ('x'), … within 0.2 s; if it is only slow, raise "
        "reward_timeout (0 is no limit)"
    )


class Settings(Brightness):
    """Notes under what it scores: networks whose result depends on it."""

    name, seen = "settings", ()

    def __init__(self):
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(32, 4, batch_first=True)
        self.network = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    def score(self, media_BFCHW, prompts):
        time.sleep(0.05)
        autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast, torch.get_num_threads(), HERE.get())
        Settings.seen += (modes,)
        return self.network(media_BFCHW[:, 0, 0])[:, 0, 0].float()


@pytest.mark.parametrize(
    "mode, expected",
    [
        (torch.inference_mode, (False, True, False, 1, "here")),
        (lambda: torch.autocast("cpu", torch.bfloat16), (True, False, torch.bfloat16, 1, "here")),
    ],
)
def test_a_slow_reward_in_time_scores_the_same_bits_under_the_same_settings(monkeypatch, mode, expected):
    """With a limit, in a thread of its own, as without, in this one: gradients, inference mode, autocast, threads, context."""
    monkeypatch.setattr(Settings, "seen", ())
    media_BFCHW, prompts = torch.rand(6, 1, 3, 32, 32), blank(6)[1]
    reward, token = Settings(), HERE.set("here")
    with mode():
        near, far = (score_all([limited(reward, seconds)], media_BFCHW, prompts).reward_BK for seconds in (0.0, 30.0))
    HERE.reset(token)
    assert torch.equal(near, far) and len(near.unique()) == 6 and not far.requires_grad
    assert Settings.seen == (expected, expected)


@pytest.mark.parametrize("error", [ValueError("no GPU"), TimeoutError("of its own")])
def test_what_a_reward_raises_in_time_is_its_own_failure(error):
    with pytest.raises(RewardError) as caught:
        score_all([limited(Told(error), 60.0)], *blank(1))
    assert str(caught.value) == f"reward 'told' failed: {error!r} on 1 prompts: 0 ('x')" and caught.value.__cause__ is error


@pytest.mark.parametrize("far", [False, True])
def test_signals_get_through_while_a_reward_is_waited_for(gate, far):
    """Their handlers run in the main thread, and what they raise ends the waiting: so do Ctrl-C and a scheduler's SIGTERM."""

    class Struck(BaseException):
        pass

    def strike(number, frame):
        raise Struck

    reward = Told(None, gate.wait)
    if far:
        reward.submit = lambda media, prompts: [Workers(1, "far").submit(reward.score, media, prompts)]
    before = signal.signal(signal.SIGALRM, strike)
    started = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Struck):
            score_all([limited(reward, 60.0)], *blank(1))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - started < 2


def test_scores_that_do_not_come_from_elsewhere_are_waited_for_no_longer(gate):
    """Of three requests one is answered, one hangs and one waits for its turn, which is called off."""
    workers, told = Workers(1, "far"), Told(torch.ones(1))
    told.submit = lambda media, prompts: [workers.submit(call) for call in (lambda: torch.ones(1), gate.wait, gate.wait)]
    background = AsyncScoring([limited(told, 0.2)])
    background.add(*blank(3))
    with pytest.raises(RewardError, match=r"'told' has not scored 3 prompts: .* within 0.2 s"):
        score_all(background.rewards, *blank(3), background)
    assert background.parts_K[0][0].result() == 1 and any(part.cancelled() for part in background.parts_K[0])


def test_the_command_ends_in_one_line_after_a_checkpoint(toy_pipeline, tmp_path, capsys, monkeypatch):
    """Exit code 2, although the reward still computes in its thread: in the second iteration, after the first's row."""
    monkeypatch.setattr(Computes, "good", 1)
    argv = ["train", "--rewards", "[alignment,tests.test_hanging:Computes]", "--reward_timeout", "1"]
    argv += ["--policy.path", toy_pipeline, "--out", str(tmp_path), "--sampler.steps", "3"]
    argv += ["--prompts_per_iteration", "2", "--group_size", "2", "--micro_batch", "2"]
    assert main(argv) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "otca train: error: reward 'computes' has not scored 4 prompts: train-" in said
    assert "within 1 s; if it is only slow, raise reward_timeout (0 is no limit)" in said
    assert said.endswith("the same command goes on from iteration 1")
    assert [path.name for path in checkpoints(tmp_path)] == ["iteration_000001"]
    assert len((tmp_path / "train.csv").read_text().splitlines()) == 2
    for thread in (thread for thread in threading.enumerate() if thread.name == "reward computes"):
        thread.join(5)  # it was ended: it would take the processor from others
        assert not thread.is_alive()


def test_a_thread_that_never_comes_back_keeps_no_process():
    """Neither one that scores here, nor one that waits for a server."""
    script = """
import sys, threading, torch
from otca.errors import RewardError
from otca.rewards.base import score_all
from otca.rewards.workers import Workers
from otca.types import Prompt

class Hangs:
    name, seconds, gate = "hangs", 0.1, threading.Event()
    def score(self, media_BFCHW, prompts):
        self.gate.wait()

Workers(1, "far").submit(Hangs.gate.wait)
try:
    score_all([Hangs()], torch.zeros(1, 1, 3, 8, 8), [Prompt("a", "x")])
except RewardError:
    sys.exit(2)
"""
    done = ran([sys.executable, "-c", script])
    assert (done.returncode, done.stderr) == (2, "")
