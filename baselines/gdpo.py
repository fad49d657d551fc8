"""GDPO (Liu et al. 2026, arXiv 2601.05242): per-objective z-scores, mixed, then whitened over the whole batch.

Differs from its source, a language-model method, only in where it is applied: one advantage a trajectory, the same at
every denoising step.
"""

import torch

from otca.config import TrainConfig
from otca.credit import batch_mean
from otca.methods import Method, zscore_advantage_BK
from otca.types import Needs, Scores, Total, Trajectory, alone


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """K = 1: Σ_k w_k z_k, less its batch mean, over its batch standard deviation + ε; the same at every step."""
    fused_B1 = (zscore_advantage_BK(rollout, scores, config) * torch.tensor(config.weights_K)).sum(1, keepdim=True)
    centred_B1 = fused_B1 - batch_mean(fused_B1, total)
    white_B1 = centred_B1 / (batch_mean(centred_B1.square(), total).sqrt() + config.credit.advantage_epsilon)
    return torch.ones(len(rollout.trained_T), *white_B1.shape), white_B1


METHOD = Method(
    "gdpo",
    "GDPO: static weights of per-objective z-scores, whitened over the batch",
    assign,
    needs=lambda config: Needs.WHOLE_BATCH,
)
