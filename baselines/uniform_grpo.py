"""Uniform-reward GRPO: the weighted sum of raw rewards is one reward, and every step gets its full advantage.

The rule of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470) and DanceGRPO (Xue et al. 2025, arXiv 2505.07818) with one
summed reward, standardised within the group. An objective's say is its raw standard deviation times its weight. Differs from
both in what stands around the rule: no KL to the starting model, the clip and the tuned weights of the tier.
"""

import torch

from otca.config import TrainConfig
from otca.credit import group_zscore
from otca.methods import Method
from otca.types import Scores, Trajectory


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """K = 1: credit 1 for every step, advantage of the summed reward."""
    total_B1 = (scores.reward_BK * torch.tensor(config.weights_K).to(scores.reward_BK)).sum(dim=1, keepdim=True)
    advantage_B1 = group_zscore(total_B1, rollout.group_B, config.credit.advantage_epsilon)
    return torch.ones(len(rollout.trained_T), *advantage_B1.shape), advantage_B1


METHOD = Method("uniform_grpo", "uniform-reward GRPO: group z-score of the summed raw rewards", assign)
