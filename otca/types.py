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
"""Sum of a tensor over all processes. What a rule knows of the whole batch goes through it, so that the number of processes
changes nothing; samples of a group are never split."""


def alone(value: torch.Tensor) -> torch.Tensor:
    """`Total` of a single process."""
    return value


class Needs(enum.Flag):
    """What a method asks for beyond states, log-probabilities and final rewards.

    VELOCITY and MEAN of each transition are kept by the rollout; STATE_REWARDS are estimated (`otca/state_values.py`);
    WHOLE_BATCH gives the method's `assign` a fourth argument, the `Total` over processes.
    """

    NOTHING = 0
    VELOCITY = enum.auto()
    MEAN = enum.auto()
    STATE_REWARDS = enum.auto()
    WHOLE_BATCH = enum.auto()


@dataclass(frozen=True)
class Prompt:
    """A text prompt.

    ``id`` names it in rows and file names; ``spec`` is what a verifier needs, plain JSON (``None`` where there is none);
    ``file`` is the media file that a prompts list names for it, if it does.
    """

    id: str
    text: str
    spec: dict[str, Any] | None = None
    file: str | None = None


@dataclass(frozen=True)
class Trajectory:
    """What one round of sampling leaves behind.

    latents_SB: (S, B, …) states in the policy's own latent layout; velocity_TB and mean_TB: (T, B, …), kept only when
    the method asks for them; std_T: (T,) noise standard deviation of each transition (0 = deterministic);
    log_prob_TB: (T, B) mean Gaussian log-density of the transitions; sigma_S: (S,) noise levels from 1 to 0;
    trained_T: (T,) bool, transitions that may be trained; media_BFCHW: (B, F, 3, H, W) in [0, 1]; prompts: B entries;
    group_B: (B,) index of the prompt slot; seed_B: B integers, the seed of each sample's noise.
    """

    latents_SB: torch.Tensor
    std_T: torch.Tensor
    log_prob_TB: torch.Tensor
    sigma_S: torch.Tensor
    trained_T: torch.Tensor
    media_BFCHW: torch.Tensor
    prompts: list[Prompt]
    group_B: torch.Tensor
    seed_B: list[int]
    velocity_TB: torch.Tensor | None = None
    mean_TB: torch.Tensor | None = None


@dataclass(frozen=True)
class Scores:
    """reward_BK: (B, K) raw rewards; names: K reward names; seconds: time each reward took.

    state_reward_SBK: (S, B, K) estimated rewards of each state, the last row the final ones, for methods that need them.
    """

    reward_BK: torch.Tensor
    names: tuple[str, ...]
    seconds: dict[str, float]
    state_reward_SBK: torch.Tensor | None = None


@dataclass(frozen=True)
class Credit:
    """What a method makes of scores.

    advantage_TB: (T, B), the number that multiplies each transition's log-probability gradient; step_weight_TB: (T, B),
    0 where a step of a sample is not trained; advantage_TBK: (T, B, K), its parts before fusing, clipped each, for losses
    that treat objectives apart; credit_TBK and advantage_BK: the factors (advantage_TB = Σ_k credit_TBK · advantage_BK,
    before clipping); diagnostics: plain numbers for the log.
    """

    advantage_TB: torch.Tensor
    step_weight_TB: torch.Tensor
    advantage_TBK: torch.Tensor
    credit_TBK: torch.Tensor
    advantage_BK: torch.Tensor
    diagnostics: dict[str, float] = field(default_factory=dict)
