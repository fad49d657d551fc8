"""Process credit by a value head, beyond the paper [ours]: what a state is worth is read off the policy's hidden states.

A step is worth the difference of its two states' values (`otca/value_head.py`), summed over later steps with a decay that is
what the next state's value leaves unexplained: where values say nothing, every step gets the whole reward, as by static
weighting; where they say all, only its own gain. Only two steps a sample are trained, drawn by the size of their credit.
"""

import torch

from otca import credit
from otca.config import TrainConfig
from otca.methods import Method
from otca.types import Needs, Scores, Total, Trajectory, alone


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> tuple[torch.Tensor, torch.Tensor]:
    """Process advantages times fixed weights w_k; advantage 1."""
    settings, group_B = config.credit, rollout.group_B
    values_SBK = credit.shrunk_values_SBK(scores.state_reward_SBK, group_B, total=total)
    decay_TK = 1 - credit.explained_SK(values_SBK, total)[1:]
    advantage_TBK = credit.process_advantage_TBK(
        values_SBK, group_B, decay_TK, rollout.trained_T, settings.advantage_epsilon, total
    )
    return advantage_TBK * torch.tensor(config.weights_K), torch.ones_like(scores.reward_BK)


METHOD = Method(
    "value_head",
    "process credit by a value head on the policy's hidden states; two credited steps a sample are trained",
    assign,
    settings={"credit.sampled_steps": 2},
    needs=lambda config: Needs.VALUE_HEAD | Needs.WHOLE_BATCH,
)
