"""The smallest real training run: toy rewards, two groups of three samples, one iteration."""

from __future__ import annotations

from pathlib import Path

import torch

from baselines import find_method
from otca.config import TrainConfig
from otca.trainer import Trainer


class Brightness:
    """A reward that an untrained model's images differ in: the mean of the media."""

    name, range, source, licence, revision = "brightness", (0.0, 1.0), "test", "", ""

    def score(self, media_BFCHW, prompts):
        return media_BFCHW.mean(dim=(1, 2, 3, 4))


class Red(Brightness):
    name = "red"

    def score(self, media_BFCHW, prompts):
        return media_BFCHW[:, :, 0].mean((1, 2, 3))


class Blue(Brightness):
    name = "blue"

    def score(self, media_BFCHW, prompts):
        return media_BFCHW[:, :, 2].mean((1, 2, 3))


REWARDS = ["tests.toys:Red", "tests.toys:Blue"]


def toy_settings(method: str, pipeline: str, **changes: object) -> dict[str, object]:
    """Dotted settings of a run of ``method`` on the pipeline folder; ``changes`` win (dotted names by ``**{...}``)."""
    return {
        "method": method,
        "policy.path": pipeline,
        "rewards": REWARDS,
        "prompts_per_iteration": 2,
        "group_size": 3,
        "micro_batch": 3,
        "iterations": 1,
        "sampler.steps": 6,
    } | changes


def toy_config(method: str, pipeline: str, **changes: object) -> TrainConfig:
    """The config of such a run, the method's own settings included."""
    return TrainConfig.from_dotted(find_method(method).settings | toy_settings(method, pipeline, **changes))


def trainer_of(config: TrainConfig, folder: Path) -> Trainer:
    return Trainer(config, find_method(config.method), folder)


def trained(config: TrainConfig, folder: Path) -> Trainer:
    """The trainer of a run, after its last iteration."""
    trainer = trainer_of(config, folder)
    trainer.run()
    return trainer


def weights(trainer: Trainer) -> torch.Tensor:
    """All trained weights."""
    return torch.cat([p.detach().flatten() for p in trainer.parameters])
