"""Records that pass between the stages of an iteration.

Axes (suffixes of tensor names): P prompts, G samples a prompt (a group), B = P·G samples, T denoising steps,
S = T + 1 states (index 0 = noise, T = final), K objectives, F frames, C channels, H height, W width.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Total = Callable[[torch.Tensor], torch.Tensor]
"""Sum of a tensor over all processes, for rules that know the whole batch; samples of a group are never split."""


def alone(value: torch.Tensor) -> torch.Tensor:
    return value


class Needs(enum.Flag):
    """What a method asks for beyond states, log-probabilities and final rewards.

    VELOCITY and MEAN of each transition are kept by the rollout; STATE_REWARDS are estimated by completions
    (`otca/state_values.py`), or by a VALUE_HEAD on the hidden states, which the rollout keeps for it (`otca/value_head.py`);
    WHOLE_BATCH gives the method's `assign` a fourth argument, the `Total` over processes.
    """

    NOTHING = 0
    VELOCITY = enum.auto()
    MEAN = enum.auto()
    STATE_REWARDS = enum.auto()
    VALUE_HEAD = enum.auto()
    WHOLE_BATCH = enum.auto()


@dataclass(frozen=True)
class Prompt:
    """A text prompt."""

    id: str  # its name in rows and file names
    text: str
    spec: dict[str, Any] | None = None  # what a verifier needs, plain JSON
    file: str | None = None  # the media file that a prompts list names for it


@dataclass(frozen=True)
class Trajectory:
    """What one round of sampling leaves behind."""

    latents_SB: torch.Tensor  # (S, B, …) in the policy's own layout
    std_T: torch.Tensor  # noise standard deviation of each transition, 0 = deterministic
    log_prob_TB: torch.Tensor  # Gaussian log-density of each transition, averaged over latent dimensions
    sigma_S: torch.Tensor  # noise levels from 1 to 0
    trained_T: torch.Tensor  # bool, transitions that may be trained
    media_BFCHW: torch.Tensor  # (B, F, 3, H, W) in [0, 1]
    prompts: list[Prompt]  # B entries
    group_B: torch.Tensor  # index of the prompt slot
    seed_B: list[int]  # seed of each sample's noise
    velocity_TB: torch.Tensor | None = None  # (T, B, …), kept for methods that need VELOCITY
    mean_TB: torch.Tensor | None = None  # (T, B, …), kept for methods that need MEAN
    hidden_TBD: torch.Tensor | None = None  # mean hidden states (T, B, D), kept for methods that need a VALUE_HEAD


@dataclass(frozen=True)
class Scores:
    """Rewards of the samples."""

    reward_BK: torch.Tensor  # raw rewards
    names: tuple[str, ...]  # K names
    seconds: dict[str, float]  # time each reward took
    state_reward_SBK: torch.Tensor | None = None  # of each state, the last row final, for methods that need them


@dataclass(frozen=True)
class Credit:
    """What a method makes of scores: advantage_TB = Σ_k credit_TBK · advantage_BK, clipped."""

    advantage_TB: torch.Tensor  # what multiplies each transition's log-probability gradient
    step_weight_TB: torch.Tensor  # 0 where a step of a sample is not trained
    advantage_TBK: torch.Tensor  # the parts before fusing, clipped each, for losses that treat objectives apart
    credit_TBK: torch.Tensor
    advantage_BK: torch.Tensor
    diagnostics: dict[str, float] = field(default_factory=dict)  # plain numbers for the log
