"""What each state of a trajectory was worth: rewards of what the policy would make of it by ODE (process credit)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from otca.config import CreditConfig
from otca.policies.base import Policy
from otca.rewards.base import Reward, score_all
from otca.rollout import velocity_at
from otca.samplers import clean_prediction
from otca.types import Rollout


def completion_path(state: int, steps: int, length: int) -> list[int]:
    """Grid points that an ODE completion visits from a state to the end: ``length`` steps, or all that are left (0)."""
    left = steps - state
    count = min(length, left) if length else left
    return np.linspace(state, steps, count + 1).round().astype(int).tolist()


def scored_states(steps: int, count: int) -> list[int]:
    """Which of the states 0 … T − 1 are scored: ``count`` of them, evenly spread from the first on, or all (0)."""
    if not count or count >= steps:
        return list(range(steps))
    return np.linspace(0, steps, count, endpoint=False).round().astype(int).tolist()


@torch.no_grad()
def process_values(
    policy: Policy, sampled: Rollout, final_BK: torch.Tensor, rewards: list[Reward], settings: CreditConfig, micro_batch: int
) -> tuple[torch.Tensor, dict[str, int]]:
    """Rewards (S, B, K) of the completions of each state, the last row the final rewards, and what they cost.

    The first ODE step uses the velocity that the rollout kept, so a completion of one step (the clean prediction) costs no
    network evaluation. Costs: ``network_evaluations`` and ``reward_calls``, each media scored being decoded once.
    Raises `RewardError` as any scoring does.
    """
    sigma_S, steps, count = sampled.sigma_S, len(sampled.sigma_S) - 1, len(sampled.prompts)
    condition = policy.encode([p.text for p in sampled.prompts])
    scored = scored_states(steps, settings.process_states)
    values, passes = {steps: final_BK}, 0
    for state in scored:
        path = completion_path(state, steps, settings.process_completion)
        passes += len(path) - 2
        media = []
        for first in range(0, count, micro_batch):
            rows = slice(first, first + micro_batch)
            x, velocity = sampled.latents_SB[state, rows], sampled.velocity_TB[state, rows]
            for here, there in pairwise(path):
                velocity = velocity if here == state else velocity_at(policy, x, here, sigma_S, condition.rows(rows))
                x = clean_prediction(x, velocity, float(sigma_S[here] - sigma_S[there]))  # one Euler step
            media.append(policy.decode(x))
        values[state] = score_all(rewards, torch.cat(media), sampled.prompts).reward_BK
    costs = {
        "network_evaluations": count * passes * policy.forwards_per_velocity,
        "reward_calls": count * len(scored) * len(rewards),
    }
    return _interpolated(values, steps), costs


def _interpolated(values: dict[int, torch.Tensor], steps: int) -> torch.Tensor:
    """Values of all states, linear in the state's index between those that are known."""
    known = sorted(values)
    out = []
    for state in range(steps + 1):
        low = max(k for k in known if k <= state)
        high = min(k for k in known if k >= state)
        share = (state - low) / (high - low) if high > low else 0.0
        out.append(torch.lerp(values[low], values[high], share))
    return torch.stack(out)
