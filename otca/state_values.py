"""What each state of a trajectory was worth: rewards of what the policy would make of it (process credit, METHOD §2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from otca.config import CreditConfig, SamplerConfig, TrainConfig
from otca.credit import group_center
from otca.models.base import Policy
from otca.rewards.base import Reward, score_all
from otca.sampling import Plan, clean_prediction, condition_of, generator, micro_batches, transition_at, velocity_at
from otca.types import Trajectory


def completion_path(state: int, steps: int, length: int) -> list[int]:
    """Grid points that an ODE completion visits from a state to the end: ``length`` steps, or all that are left (0)."""
    left = steps - state
    count = min(length, left) if length else left
    return np.linspace(state, steps, count + 1).round().astype(int).tolist()


def scored_states(steps: int, count: int, spread: str = "even") -> list[int]:
    """Which of the states 0 … T − 1 are scored: ``count`` of them, or all (0).

    ``spread``: evenly from state 0 on ("even"), or the first ones after state 0, which is then none of them ("early").
    """
    if spread == "early":
        return list(range(1, min(count, steps - 1) + 1 if count else steps))
    if not count or count >= steps:
        return list(range(steps))
    return np.linspace(0, steps, count, endpoint=False).round().astype(int).tolist()


def planned_paths(stochastic_T: torch.Tensor, settings: CreditConfig) -> dict[int, list[int]]:
    """Grid points of each scored state's completion; empty where the trajectory is its own, having gone on without noise."""
    steps, out = len(stochastic_T), {}
    for state in scored_states(steps, settings.process_states, settings.process_spread):
        whole = completion_path(state, steps, 0)
        path = whole if settings.process_continuations else completion_path(state, steps, settings.process_completion)
        out[state] = path if path != whole or bool(stochastic_T[state:].any()) else []
    return out


def path_evaluations(paths: dict[int, list[int]], settings: CreditConfig) -> int:
    """Network evaluations of one sample along planned paths, without guidance; the first step's velocity is the rollout's own."""
    return max(settings.process_continuations, 1) * sum(len(path) - 2 for path in paths.values() if path)


@torch.no_grad()
def process_values(
    policy: Policy, sampled: Trajectory, final_BK: torch.Tensor, rewards: list[Reward], config: TrainConfig
) -> tuple[torch.Tensor, dict[str, int]]:
    """Estimated rewards (S, B, K) of each state, the last row the final rewards, and what they cost (evaluations, reward calls).

    A state is worth the reward of its ODE completion, or the mean over ``credit.process_continuations`` stochastic ones; initial
    noise that is not scored (``credit.process_spread: early``) is worth its group's mean final reward. The first step uses the
    velocity that the rollout kept, so the clean prediction costs no evaluation, and a trajectory's own completion nothing.
    """
    settings, steps, count = config.credit, len(sampled.sigma_S) - 1, len(sampled.prompts)
    draws, paths = settings.process_continuations, planned_paths(sampled.std_T > 0, settings)
    values = {0: (final_BK - group_center(final_BK, sampled.group_B)).to(final_BK), steps: final_BK}
    for state, path in paths.items():
        if not path:
            values[state] = final_BK
        elif draws:
            values[state] = continuation_rewards_NBK(policy, sampled, rewards, config, state, range(draws)).mean(0)
        else:
            values[state] = _completion_rewards_BK(policy, sampled, rewards, path, config.micro_batch)
    scored = max(draws, 1) * sum(map(bool, paths.values()))
    costs = {
        "network_evaluations": count * path_evaluations(paths, settings) * policy.forwards_per_velocity,
        "reward_calls": count * scored * len(rewards),
    }
    return _interpolated(values, steps), costs


@torch.no_grad()
def continuation_rewards_NBK(
    policy: Policy, sampled: Trajectory, rewards: list[Reward], config: TrainConfig, state: int, draws: Sequence[int]
) -> torch.Tensor:
    """Rewards (N, B, K) of stochastic continuations of each sample's state; their mean estimates its value (METHOD §2.3).

    ``draws`` numbers them; a number stands for the same noise at every state. Raises `RewardError` as any scoring does.
    """
    out = []
    for draw in draws:
        media = []
        for rows in micro_batches(len(sampled.prompts), config.micro_batch):
            condition = condition_of(policy, sampled.prompts, rows)
            latents = continued_from(policy, sampled, config.sampler, state, draw, rows, condition)
            media.append(policy.decode(latents))
        out.append(score_all(rewards, torch.cat(media), sampled.prompts).reward_BK)
    return torch.stack(out)


def continued_from(policy: Policy, sampled: Trajectory, sampler: SamplerConfig, state: int, draw: int, rows: slice, condition):
    """Final latents (B, …) when sampling goes on from a state with fresh noise, under the same plan of stochastic steps.

    The noise of a step depends on the sample's seed, ``draw`` and the step alone, so continuations of neighbouring states
    share it. The first step uses the velocity that the rollout kept.
    """
    plan = Plan(sampler, sampled.sigma_S, sampled.std_T > 0, sampled.trained_T, len(sampled.seed_B))
    x, velocity = sampled.latents_SB[state, rows], sampled.velocity_TB[state, rows]
    for t in range(state, len(plan.sigma_S) - 1):
        if t > state:
            velocity = velocity_at(policy, x, t, plan.sigma_S, condition)
        noise = policy.noise([generator(seed, f"continuation {draw} step {t}") for seed in sampled.seed_B[rows]])
        x = transition_at(plan, t, x, velocity, noise=noise)[0]
    return x


def _completion_rewards_BK(policy, sampled, rewards, path, micro_batch) -> torch.Tensor:
    """Rewards of the ODE completions from state ``path[0]`` along the grid points of ``path``."""
    media, sigma_S = [], sampled.sigma_S
    for rows in micro_batches(len(sampled.prompts), micro_batch):
        condition = condition_of(policy, sampled.prompts, rows)
        x, velocity = sampled.latents_SB[path[0], rows], sampled.velocity_TB[path[0], rows]
        for here, there in pairwise(path):
            velocity = velocity if here == path[0] else velocity_at(policy, x, here, sigma_S, condition)
            x = clean_prediction(x, velocity, float(sigma_S[here] - sigma_S[there]))  # one Euler step
        media.append(policy.decode(x))
    return score_all(rewards, torch.cat(media), sampled.prompts).reward_BK


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
