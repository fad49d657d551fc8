"""What an iteration of a config costs in network evaluations, before anything runs (DESIGN §7)."""

from __future__ import annotations

import numpy as np

from otca import schedules
from otca.config import TrainConfig
from otca.methods import Method
from otca.process import completion_path, scored_states


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
    per_step = 3 + bool(config.loss.kl_beta) + bool(method.forward_loss)
    return steps + trained * per_step + _completions(config, method, plan)


def _completions(config: TrainConfig, method: Method, plan: schedules.StepPlan) -> int:
    """Extra passes of process credit; states from which sampling went on without noise cost nothing."""
    if "process" not in method.needs(config):
        return 0
    steps, credit, out = config.sampler.steps, config.credit, 0
    for state in scored_states(steps, credit.process_states):
        left = steps - state
        if credit.process_continuations:
            out += credit.process_continuations * (left - 1) * bool(plan.stochastic_T[state:].any())
        elif 0 < credit.process_completion < left or plan.stochastic_T[state:].any():
            out += len(completion_path(state, steps, credit.process_completion)) - 2
    return out
