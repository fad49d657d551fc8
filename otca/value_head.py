"""A value head on the policy's own hidden states: what a state foretells of the final rewards, learned on the way.

One ridge regression a noise level, of final rewards on mean hidden states, both centred in the group. It knows earlier iterations
alone, so no sample's own reward enters its value, and costs no network evaluation, decode or reward [ours].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from otca.config import TrainConfig
from otca.credit import group_center
from otca.types import Total, Trajectory, alone

if TYPE_CHECKING:
    from otca.models.base import Policy

WIDEST = 256
"""Hidden states of more dimensions are projected to so many, by a fixed random matrix."""
MEMORY = 0.9
"""What an iteration leaves of the weight of those before it."""
RIDGE = 0.03
"""Penalty, as a share of a feature's mean square."""


class ValueHead:
    """The regressions of all noise levels: T steps, D features, K objectives."""

    def __init__(self, steps: int, width: int, objectives: int, total: Total = alone):
        self.total = total
        self.projection = None
        if width > WIDEST:
            self.projection = torch.randn(width, WIDEST, generator=torch.Generator().manual_seed(0)).double() / WIDEST**0.5
        features = min(width, WIDEST)
        self.square_TDD = torch.zeros(steps, features, features, dtype=torch.float64)
        self.cross_TDK = torch.zeros(steps, features, objectives, dtype=torch.float64)

    @classmethod
    def of(cls, policy: Policy, config: TrainConfig, total: Total = alone) -> ValueHead:
        """One for a policy and a run's settings."""
        return cls(config.sampler.steps, policy.hidden_width, len(config.rewards), total)

    @property
    def state(self) -> list[torch.Tensor]:
        """What a checkpoint keeps."""
        return [self.square_TDD, self.cross_TDK]

    def values_SBK(self, sampled: Trajectory, final_BK: torch.Tensor) -> torch.Tensor:
        """Values of every state, the last row the final rewards, centred in the group: (S, B, K); then learns from them.

        Zero in the first iteration.
        """
        group_B = sampled.group_B
        hidden_TBD = sampled.hidden_TBD.double()
        if self.projection is not None:
            hidden_TBD = hidden_TBD @ self.projection
        hidden_TBD = torch.stack([group_center(hidden_BD, group_B) for hidden_BD in hidden_TBD])
        reward_BK = group_center(final_BK.cpu(), group_B)
        mean_T = self.square_TDD.diagonal(dim1=1, dim2=2).mean(1)
        ridge_TDD = (RIDGE * mean_T + 1e-12)[:, None, None] * torch.eye(self.square_TDD.shape[1], dtype=torch.float64)
        value_TBK = hidden_TBD @ torch.linalg.solve(self.square_TDD + ridge_TDD, self.cross_TDK)
        #   Σ h hᵀ and Σ h rᵀ over all iterations, older ones fading
        self.square_TDD.mul_(MEMORY).add_(self.total(hidden_TBD.mT @ hidden_TBD))
        self.cross_TDK.mul_(MEMORY).add_(self.total(hidden_TBD.mT @ reward_BK))
        return torch.cat([value_TBK, reward_BK.unsqueeze(0)]).to(final_BK)
