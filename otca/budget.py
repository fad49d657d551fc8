"""What an iteration of a config costs in network evaluations, before anything runs (DESIGN §7)."""

from __future__ import annotations

import numpy as np

from otca import schedules
from otca.config import TrainConfig
from otca.methods import Method
from otca.process import path_evaluations, planned_paths


def evaluations_per_sample(config: TrainConfig, method: Method) -> int:
    """Network evaluations of one sample in one iteration, without guidance (which doubles them).

    A forward pass at one step is 1, its backward 2 more; passes of the reference, of the lagging model and of completions
    count. With ``credit.sampled_steps``, samples whose credit is 0 at every step cost less.
    """
    selection, steps = config.step_selection, config.sampler.steps
    rng = np.random.default_rng(0)  # only which steps are drawn depends on it, not how many
    plan = schedules.plan_steps(selection.kind, steps, 0, rng, selection.fraction, selection.count, selection.stride)
    trained = int(plan.trained_T.sum())
    if config.credit.sampled_steps:
        trained = min(trained, config.credit.sampled_steps)
    completions = 0
    if "process" in method.needs(config):
        completions = path_evaluations(planned_paths(plan.stochastic_T, config.credit), config.credit)
    return steps + trained * evaluations_per_step(config, method) + completions


def evaluations_per_step(config: TrainConfig, method: Method) -> int:
    """Network evaluations of training one step of one sample: 3, and 1 more for the reference and for the lagging model."""
    return 3 + bool(config.loss.kl_beta) + bool(method.forward_loss)
