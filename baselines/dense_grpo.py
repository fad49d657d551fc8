"""DenseGRPO (2026; Stepwise-Flow-GRPO alike): a step's credit is what it adds to the reward of the ODE completion.

Differs from its source in mixing rewards by static weights of increments standardised one by one, and in completing on
the sampling grid. Each state is completed to the end, which costs about T/2 network evaluations a step.
"""

import torch

from otca.config import TrainConfig
from otca.credit import group_zscore, value_deltas_TBK
from otca.methods import Method
from otca.types import Needs, Scores, Trajectory


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Increments of the completions' rewards, z-scored in the group at each step and objective, times fixed weights."""
    eps = config.credit.advantage_epsilon
    gains = value_deltas_TBK(scores.state_reward_SBK)
    zscore_TBK = torch.stack([group_zscore(gain_BK, rollout.group_B, eps) for gain_BK in gains])
    return zscore_TBK * torch.tensor(config.weights_K), torch.ones_like(scores.reward_BK)


METHOD = Method(
    "dense_grpo",
    "DenseGRPO: increments of the reward of the ODE completion, standardised step by step",
    assign,
    settings={"credit.process_completion": 0},
    needs=lambda config: Needs.VELOCITY | Needs.STATE_REWARDS,
)
