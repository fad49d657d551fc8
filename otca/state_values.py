"""What each state of a trajectory was worth: rewards of what the policy would make of it (process credit, METHOD §2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from otca.config import TrainConfig
from otca.credit import group_center
from otca.credit_config import CreditConfig
from otca.errors import InputError
from otca.models.base import Policy
from otca.preview import fit_preview
from otca.rewards.base import Reward, score_all
from otca.rollout import condition_of, continued_from, velocity_at
from otca.samplers import clean_prediction
from otca.types import Total, Trajectory, alone

REGRESSED_NUMBERS = 4096
"""Latent numbers of a sample that are still regressed on: the solve grows with their cube."""


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
    """How each scored state is valued: the grid points of its completion, all that are left for continuations.

    Empty where the trajectory went on without noise along these very points: it is its own completion. No state is completed
    where values are regressed.
    """
    if settings.process_value == "regression":
        return {}
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
    policy: Policy, sampled: Trajectory, final_BK: torch.Tensor, rewards: list[Reward], config: TrainConfig, total: Total = alone
) -> tuple[torch.Tensor, dict[str, int]]:
    """Estimated rewards (S, B, K) of each state, the last row the final rewards, and what they cost.

    A state is worth the reward of its ODE completion, or the mean over ``credit.process_continuations`` stochastic ones; initial
    noise that is not scored (``credit.process_spread: early``) is worth its group's mean final reward. With
    ``credit.process_decoder: linear`` a completion is decoded by a `LinearPreview` of this rollout, not by the autoencoder.
    The first step uses the velocity that the rollout kept, so a completion of one step (the clean prediction) costs no
    network evaluation; a state whose completion is the trajectory itself takes the final reward and costs nothing.
    With ``credit.process_value: regression`` see `regressed_values_SBK`; it costs neither.
    Costs: ``network_evaluations`` and ``reward_calls``, each media scored being decoded once. Raises `RewardError` as any
    scoring does.
    """
    settings, steps, count = config.credit, len(sampled.sigma_S) - 1, len(sampled.prompts)
    if settings.process_value == "regression":
        return regressed_values_SBK(sampled, final_BK, total), {"network_evaluations": 0, "reward_calls": 0}
    draws, paths = settings.process_continuations, planned_paths(sampled.std_T > 0, settings)
    values = {0: (final_BK - group_center(final_BK, sampled.group_B)).to(final_BK), steps: final_BK}
    decode = policy.decode
    if settings.process_decoder == "linear" and not draws:
        preview = fit_preview(policy.latent_grid(sampled.latents_SB[-1]), sampled.media_BFCHW, total)

        def decode(latents: torch.Tensor) -> torch.Tensor:
            return preview.decode(policy.latent_grid(latents))

    for state, path in paths.items():
        if not path:
            values[state] = final_BK
        elif draws:
            values[state] = continuation_rewards_NBK(policy, sampled, rewards, config, state, range(draws)).mean(0)
        else:
            values[state] = _completion_rewards_BK(policy, sampled, rewards, path, config.micro_batch, decode)
    scored = max(draws, 1) * sum(map(bool, paths.values()))
    costs = {
        "network_evaluations": count * path_evaluations(paths, settings) * policy.forwards_per_velocity,
        "reward_calls": count * scored * len(rewards),
    }
    return _interpolated(values, steps), costs


@torch.no_grad()
def regressed_values_SBK(sampled: Trajectory, final_BK: torch.Tensor, total: Total = alone) -> torch.Tensor:
    """Estimated rewards (S, B, K) of each state, centred in the group, the last row the final rewards likewise [ours].

    At every state a ridge regression of the final rewards on the clean predictions' latents, both centred in the group, over the
    samples of the *other* groups. The penalty is the mean squared length of a prediction. Raises InputError where a sample has
    more than `REGRESSED_NUMBERS` latent numbers.
    """
    numbers = sampled.latents_SB[0, 0].numel()
    if numbers > REGRESSED_NUMBERS:
        raise InputError(
            f"credit.process_value is regression, which solves for {numbers} latent numbers of a sample, more than "
            f"{REGRESSED_NUMBERS}; use credit.process_value reward"
        )
    final_centred_BK, out = group_center(final_BK, sampled.group_B), []
    for t, velocity in enumerate(sampled.velocity_TB):
        clean = clean_prediction(sampled.latents_SB[t], velocity, float(sampled.sigma_S[t]))
        feature_BD = group_center(clean.flatten(1).to(final_BK.device), sampled.group_B)
        square_DD, cross_DK = total(feature_BD.T @ feature_BD), total(feature_BD.T @ final_centred_BK)
        count = total(torch.tensor(float(len(feature_BD)), device=feature_BD.device))
        penalty_DD = square_DD.trace() / count * torch.eye(numbers, dtype=square_DD.dtype, device=square_DD.device)
        value_BK = torch.zeros_like(final_centred_BK)
        for group in sampled.group_B.unique():
            own = sampled.group_B == group
            others_DD = square_DD - feature_BD[own].T @ feature_BD[own]
            others_DK = cross_DK - feature_BD[own].T @ final_centred_BK[own]
            value_BK[own] = feature_BD[own] @ torch.linalg.solve(others_DD + penalty_DD, others_DK)
        out.append(value_BK)
    return torch.stack([*out, final_centred_BK]).to(final_BK.dtype)


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
        for rows in _chunks(len(sampled.prompts), config.micro_batch):
            condition = condition_of(policy, sampled.prompts, rows)
            latents = continued_from(policy, sampled, config.sampler, state, draw, rows, condition)
            media.append(policy.decode(latents))
        out.append(score_all(rewards, torch.cat(media), sampled.prompts).reward_BK)
    return torch.stack(out)


def _completion_rewards_BK(policy, sampled, rewards, path, micro_batch, decode) -> torch.Tensor:
    """Rewards of the ODE completions from state ``path[0]`` along the grid points of ``path``."""
    media, sigma_S = [], sampled.sigma_S
    for rows in _chunks(len(sampled.prompts), micro_batch):
        condition = condition_of(policy, sampled.prompts, rows)
        x, velocity = sampled.latents_SB[path[0], rows], sampled.velocity_TB[path[0], rows]
        for here, there in pairwise(path):
            velocity = velocity if here == path[0] else velocity_at(policy, x, here, sigma_S, condition)
            x = clean_prediction(x, velocity, float(sigma_S[here] - sigma_S[there]))  # one Euler step
        media.append(decode(x))
    return score_all(rewards, torch.cat(media), sampled.prompts).reward_BK


def _chunks(count: int, micro_batch: int) -> list[slice]:
    return [slice(first, first + micro_batch) for first in range(0, count, micro_batch)]


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
