"""What an iteration of a config costs in network evaluations, before anything runs (DESIGN §7)."""

from __future__ import annotations

from otca.config import TrainConfig
from otca.methods import Method
from otca.sampling import Plan, plan_of
from otca.state_values import path_evaluations, planned_paths
from otca.types import Needs


def evaluations_per_sample(config: TrainConfig, method: Method) -> int:
    """Network evaluations of one sample in one iteration, without guidance (which doubles them).

    A forward pass at one step is 1, its backward 2 more; passes of the reference, of the old policy and of completions
    count. With ``credit.sampled_steps``, samples whose credit is 0 at every step cost less.
    """
    return sampling_evaluations(config, method) + trained_steps(config) * evaluations_per_step(config, method)


def trained_steps(config: TrainConfig) -> int:
    """Steps of one sample that are trained in one iteration."""
    trained = int(_any_plan(config).trained_T.sum())
    return min(trained, config.credit.sampled_steps) if config.credit.sampled_steps else trained


def sampling_evaluations(config: TrainConfig, method: Method) -> int:
    """Evaluations of one sample without gradient: its steps, and what completions of its states cost."""
    completions = 0
    if Needs.STATE_REWARDS in method.needs(config):
        completions = path_evaluations(planned_paths(_any_plan(config).stochastic_T, config.credit), config.credit)
    return config.sampler.steps + completions


def scored_media(config: TrainConfig, method: Method) -> int:
    """Media of one sample that are decoded and scored in one iteration: the final one, and what its states are valued by."""
    if Needs.STATE_REWARDS not in method.needs(config):
        return 1
    paths = planned_paths(_any_plan(config).stochastic_T, config.credit)
    return 1 + max(config.credit.process_continuations, 1) * sum(map(bool, paths.values()))


def _any_plan(config: TrainConfig) -> Plan:
    """A plan of steps; which of them are drawn is chance, how many is not."""
    return plan_of(config, 1.0, config.micro_batch)


def evaluations_per_step(config: TrainConfig, method: Method) -> int:
    """Network evaluations of training one step of one sample: 3, and 1 more for the reference and for the old policy."""
    return 3 + bool(config.loss.kl_beta) + bool(method.forward_loss)
