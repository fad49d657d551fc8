"""Flow-GRPO (Liu et al. 2025, arXiv 2505.05470): uniform credit for the summed reward, with a KL to the starting model.

Differs from its source in tuning what the tier tunes (there: LoRA r32 α64, G 24, T 10) and in leaving the last transition
noiseless and untrained. As in its scripts, the advantage is divided by the standard deviation of *all* rewards of the
iteration (`global_std`), not of the group.
"""

import torch

from otca.config import TrainConfig
from otca.credit import batch_mean, group_center
from otca.methods import Method
from otca.types import Needs, Scores, Total, Trajectory, alone


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """K = 1: (r − group mean) / (std of all r + ε) of the weighted sum r of raw rewards, the same at every step."""
    sum_B1 = (scores.reward_BK * torch.tensor(config.weights_K)).sum(1, keepdim=True)
    mean = batch_mean(sum_B1, total)
    spread = batch_mean((sum_B1 - mean).square(), total).sqrt()
    advantage_B1 = (group_center(sum_B1, rollout.group_B) / (spread + config.credit.advantage_epsilon)).float()
    return torch.ones(len(rollout.trained_T), *advantage_B1.shape), advantage_B1


METHOD = Method(
    "flow_grpo",
    "Flow-GRPO: summed raw rewards over the iteration's standard deviation, KL to the reference",
    assign,
    settings={
        "sampler.kind": "flow_sde",
        "sampler.level": 0.7,
        "loss.clip_low": 1e-4,
        "loss.clip_high": 1e-4,
        "loss.clip_dims": 65536,  # SD3.5 at 512 px
        "loss.kl_beta": 0.04,
        "loss.kl_scale": "flow_grpo",
    },
    needs=lambda config: Needs.WHOLE_BATCH,
)
