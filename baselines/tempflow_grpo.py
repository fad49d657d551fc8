"""TempFlow-GRPO (He et al. 2025, arXiv 2508.04324): every step weighs by its noise level, s·√Δ, with mean 1.

A fixed schedule, the essential rival of TCD: it knows the step but not the sample. Differs from its source in leaving out
the branching of trajectories; its public code scales by the constant 2.25 instead of to mean 1.
"""

import torch

from otca.config import TrainConfig
from otca.methods import Method, static_TBK, zscore_advantage_BK
from otca.types import Scores, Trajectory


def noise_weights_T(rollout: Trajectory) -> torch.Tensor:
    """Noise standard deviation of each transition, averaging 1 over the trained steps, 0 elsewhere: (T,)."""
    std_T = rollout.std_T.float() * rollout.trained_T
    return std_T * rollout.trained_T.sum() / std_T.sum()


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The schedule times fixed objective weights, per-objective z-scores."""
    return noise_weights_T(rollout).view(-1, 1, 1) * static_TBK(rollout, config), zscore_advantage_BK(rollout, scores, config)


METHOD = Method("tempflow_grpo", "TempFlow-GRPO: static weights, steps weighted by their noise level", assign)
