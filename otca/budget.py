"""What an iteration of a config costs in network evaluations, before anything runs (DESIGN §7)."""

from __future__ import annotations

from dataclasses import dataclass

from otca.config import TrainConfig
from otca.methods import Method
from otca.sampling import plan_of
from otca.state_values import path_evaluations, planned_paths
from otca.types import Needs


@dataclass(frozen=True)
class Costs:
    """Of one sample in one iteration, without guidance (which doubles the evaluations)."""

    sampling: int
    """Evaluations without gradient: its steps, and what completions of its states cost."""
    trained_steps: int
    scored_media: int
    """Media that are decoded and scored: the final one, and what its states are valued by."""
    per_step: int
    """Evaluations of a trained step."""

    @property
    def evaluations(self) -> int:
        """All of them. With ``credit.sampled_steps``, samples whose credit is 0 at every step cost less."""
        return self.sampling + self.trained_steps * self.per_step


def evaluations_per_step(config: TrainConfig, method: Method) -> int:
    """Evaluations of training one step of one sample: forward 1, backward 2, and 1 for the reference and for the old policy."""
    return 3 + bool(config.loss.kl_beta) + bool(method.forward_loss)


def costs_of(config: TrainConfig, method: Method) -> Costs:
    """What a sample costs; which of its steps are drawn is chance, how many is not."""
    plan, settings, completions, media = plan_of(config, 1.0, config.micro_batch), config.credit, 0, 1
    if Needs.STATE_REWARDS in method.needs(config):
        paths = planned_paths(plan.stochastic_T, settings)
        completions = path_evaluations(paths, settings)
        media += max(settings.process_continuations, 1) * sum(map(bool, paths.values()))
    trained = int(plan.trained_T.sum())
    trained = min(trained, settings.sampled_steps or trained)
    return Costs(config.sampler.steps + completions, trained, media, evaluations_per_step(config, method))
