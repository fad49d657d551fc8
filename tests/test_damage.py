"""What a run does when its gradient is not finite, a reward says nothing, or its memory runs out."""

from __future__ import annotations

import itertools
import json
import math

import pandas as pd
import pytest
import torch

from otca.checkpoint import checkpoints
from otca.errors import RewardError, TrainingError, memory_named
from otca.update import Updater
from tests.toys import Brightness, toy_config, trainer_of


def toy_trainer(pipeline, folder, **changes):
    settings = {"optimizer.updates_per_iteration": 1, "sampler.steps": 3} | changes
    return trainer_of(toy_config("static_multi_reward", pipeline, **settings), folder)


def exploding(monkeypatch, updates):
    """The gradients of these updates (counted from 0) are infinite."""
    original, count = Updater._accumulate_share, iter(range(100))

    def accumulate(self, *args):
        original(self, *args)
        if next(count) in updates:
            self.parameters[0].grad.fill_(float("inf"))

    monkeypatch.setattr(Updater, "_accumulate_share", accumulate)


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(toy_pipeline, tmp_path, monkeypatch):
    exploding(monkeypatch, {1, 3})
    trainer = toy_trainer(toy_pipeline, tmp_path, iterations=5, patience=2)
    weights = []
    trainer.run(lambda row: weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters])))
    rows = pd.read_csv(tmp_path / "train.csv")
    assert rows["skipped_updates"].tolist() == [0, 1, 0, 1, 0]
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [True, False, True, False]
    assert torch.isfinite(weights[-1]).all()
    assert rows["update_norm"][[1, 3]].tolist() == [0, 0] and rows["gradient_norm"][[1, 3]].tolist() == [math.inf] * 2


def test_patience_ends_the_run_where_the_same_command_goes_on(toy_pipeline, tmp_path, monkeypatch):
    exploding(monkeypatch, {1, 2, 3})
    said = r"not finite in 3 updates in a row \(patience\), the last in iteration 3.*learning_rate"
    with pytest.raises(TrainingError, match=said):
        toy_trainer(toy_pipeline, tmp_path, iterations=9, patience=3).run()
    newest = checkpoints(tmp_path)[-1]
    assert newest.name == "iteration_000003"  # what was skipped changed nothing
    assert json.loads((newest / "state.json").read_text())["skipped_in_a_row"] == 3


class Constant(Brightness):
    """A reward that says the same of everything."""

    name = "constant"

    def score(self, media_BFCHW, prompts):
        return torch.full((len(media_BFCHW),), 0.1)


def test_a_constant_reward_is_warned_of_and_then_stops_the_run(toy_pipeline, tmp_path, caplog):
    settings = {"rewards": ["tests.test_damage:Constant", "tests.toys:Red"], "iterations": 9, "patience": 3}
    with pytest.raises(RewardError, match=r"'constant' was the same for all samples in 3 iterations in a row \(patience\)"):
        toy_trainer(toy_pipeline, tmp_path, **settings).run()
    assert [record.getMessage() for record in caplog.records if "constant" in record.getMessage()] == [
        f"iteration {n}: reward 'constant' was the same for all samples in {n + 1} iterations in a row" for n in (0, 1)
    ]
    assert len(pd.read_csv(tmp_path / "train.csv")) == 3
    with pytest.raises(RewardError, match="in 4 iterations"):  # the same command does not begin to count anew
        toy_trainer(toy_pipeline, tmp_path, **settings).run()


FULL = {
    "velocity": ("sampling 3 samples", MemoryError()),
    "decode": ("decoding 3 samples", MemoryError()),
    "_transition": ("in the backward pass of step 0", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
}


@pytest.mark.parametrize("name", FULL)
def test_what_memory_was_lacking_for_is_named(toy_pipeline, tmp_path, monkeypatch, name):
    trainer = toy_trainer(toy_pipeline, tmp_path, iterations=2, micro_batch=3)
    doing, error = FULL[name]

    def full(*args):
        raise error

    monkeypatch.setattr(trainer.updater if name == "_transition" else trainer.policy, name, full)
    with pytest.raises(TrainingError, match=f"out of memory {doing}: lower micro_batch"):
        trainer.run()
    assert checkpoints(tmp_path)[-1].name == "iteration_000000"


def test_memory_of_the_cpu_too():
    with pytest.raises(TrainingError, match=r"out of memory here: lower that \(.*allocate"), memory_named("here", "that"):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="another fault"), memory_named("here", "that"):
        raise RuntimeError("another fault")
