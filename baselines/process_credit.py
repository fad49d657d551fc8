"""Objective-wise process credit, beyond the paper [ours]: each step gets its own gain in each objective.

A state is worth the reward of its completion (`otca/state_values.py`), optionally regression-shrunk toward the final reward;
a step is worth the difference, summed over later steps with decay λ (`credit.process_advantage_TBK`).
"""

import torch

from otca import credit
from otca.config import TrainConfig
from otca.methods import Method
from otca.types import Needs, Scores, Total, Trajectory, alone


def process_advantage_TBK(rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> torch.Tensor:
    """Process advantages as the settings have them, (T, B, K)."""
    settings, group_B, values_SBK = config.credit, rollout.group_B, scores.state_reward_SBK
    if settings.process_shrinkage:
        values_SBK = credit.shrunk_values_SBK(values_SBK, group_B, total=total)
    return credit.process_advantage_TBK(
        values_SBK, group_B, settings.process_decay, rollout.trained_T, settings.advantage_epsilon, total
    )


def process_needs(config: TrainConfig) -> Needs:
    """The velocities, from which completions start, the completions' rewards, and their spread over all processes."""
    return Needs.VELOCITY | Needs.STATE_REWARDS | Needs.WHOLE_BATCH


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """Process advantages times fixed weights w_k; advantage 1."""
    advantage_TBK = process_advantage_TBK(rollout, scores, config, total)
    return advantage_TBK * torch.tensor(config.weights_K), torch.ones_like(scores.reward_BK)


METHOD = Method("process_credit", "each step's own gain in each objective", assign, needs=process_needs)
