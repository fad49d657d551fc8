"""Process credit whose objectives are weighted by MOCA on the final rewards [ours]."""

import torch

from baselines.process_credit import process_advantage_TBK, process_needs
from otca.config import TrainConfig
from otca.credit import otca_moca_TBK
from otca.methods import Method, zscore_advantage_BK
from otca.types import Scores, Total, Trajectory, alone


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """Process advantages times MOCA's weights of the samples; advantage 1."""
    weights_TBK = otca_moca_TBK(zscore_advantage_BK(rollout, scores, config), len(rollout.trained_T), config.credit.rho)
    return weights_TBK * process_advantage_TBK(rollout, scores, config, total), torch.ones_like(scores.reward_BK)


METHOD = Method("process_moca", "process credit × MOCA's weights of the final rewards", assign, needs=process_needs)
