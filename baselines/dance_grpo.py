"""DanceGRPO (Xue et al. 2025, arXiv 2505.07818): one clipped loss a reward, added up; shared initial noise, 60 % of steps.

Differs from its source in drawing the trained steps once an iteration instead of once a sample, in weighting the rewards by
the run's weights, in the population's standard deviation instead of the sample's, and in clipping the weighted advantages to
± `loss.advantage_clip` instead of the unweighted ones.
"""

import torch

from otca.config import TrainConfig
from otca.losses import Transition, clipped_surrogate
from otca.methods import Method, static_TBK, zscore_advantage_BK
from otca.types import Scores, Trajectory


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed weights w_k at every step, per-objective z-scores; the loss keeps them apart."""
    return static_TBK(rollout, config), zscore_advantage_BK(rollout, scores, config)


def loss(step: Transition) -> torch.Tensor:
    """Σ_k of the clipped surrogate of objective k alone: (B,). A positive and a negative part are clipped on their own sides."""
    return clipped_surrogate(step.scaled_log_ratio_B.unsqueeze(1), step.advantage_BK, step.clip_low, step.clip_high).sum(1)


METHOD = Method(
    "dance_grpo",
    "DanceGRPO: a clipped loss per reward, constant-noise SDE, shared initial noise, 60 % of the steps",
    assign,
    settings={
        "sampler.kind": "dance_sde",
        "sampler.level": 0.3,
        "sampler.shared_noise": True,
        "step_selection.kind": "random_fraction",
        "step_selection.fraction": 0.6,
        "credit.advantage_epsilon": 1e-8,
        "loss.clip_low": 1e-4,
        "loss.clip_high": 1e-4,
        "loss.clip_dims": 129600,  # FLUX at 720 px
    },
    loss=loss,
)
