"""MOCA with a step index: min-norm weights of the process advantages at each step.

The abstract has MOCA weigh rewards throughout the denoising; the equations as read give its weights no step index.
"""

import torch

from baselines.process_credit import process_advantage_TBK, process_needs
from otca.config import TrainConfig
from otca.credit import moca_weights_BK
from otca.methods import Method
from otca.types import Scores, Total, Trajectory, alone


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """Process advantages times their own MOCA weights at each step; advantage 1."""
    advantage_TBK = process_advantage_TBK(rollout, scores, config, total)
    weights_TBK = moca_weights_BK(advantage_TBK.flatten(0, 1), config.credit.rho).view_as(advantage_TBK)
    return weights_TBK * advantage_TBK, torch.ones_like(scores.reward_BK)


METHOD = Method("moca_step", "MOCA at every step, on process advantages", assign, needs=process_needs)
