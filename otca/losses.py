"""Policy loss: the clipped surrogate and the KL to a reference, elementwise (METHOD §3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

KL_SCALES = ("gaussian", "flow_grpo")


@dataclass(frozen=True)
class Transition:
    """What a policy loss may read of one trained transition of one micro-batch.

    log_prob_B, with gradient, and old_log_prob_B (B,); advantage_B (B,), fused and clipped; advantage_BK (B, K), its parts
    credit · advantage before fusing, each clipped; mean (B, …), with gradient, of the transition under the policy, and
    old_mean under the one that sampled (kept only for methods that need "mean"); std, its noise; delta, the fall in σ.
    """

    log_prob_B: torch.Tensor
    old_log_prob_B: torch.Tensor
    advantage_B: torch.Tensor
    advantage_BK: torch.Tensor
    mean: torch.Tensor
    old_mean: torch.Tensor | None
    std: float
    delta: float
    clip_low: float
    clip_high: float


@dataclass(frozen=True)
class NoisedSample:
    """What a loss over the forward process may read of one noise level of one micro-batch.

    clean (B, …), the sampled latents; noisy, the same noised to ``sigma`` with fresh noise; velocity there, with gradient,
    and old_velocity of the model that lags behind; advantage_B (B,), fused and within ± advantage_clip.
    """

    clean: torch.Tensor
    noisy: torch.Tensor
    sigma: float
    velocity: torch.Tensor
    old_velocity: torch.Tensor
    advantage_B: torch.Tensor
    advantage_clip: float


def surrogate(step: Transition) -> torch.Tensor:
    """The loss of every method that brings none of its own: `clipped_surrogate` of the fused advantage, (B,)."""
    return clipped_surrogate(step.log_prob_B, step.old_log_prob_B, step.advantage_B, step.clip_low, step.clip_high)


def clipped_surrogate(log_prob, old_log_prob, advantage, clip_low: float, clip_high: float) -> torch.Tensor:
    """max(−A·r, −A·clip(r, 1−ε_lo, 1+ε_hi)) with r = exp(log_prob − old_log_prob), elementwise (the caller averages)."""
    ratio = torch.exp(log_prob - old_log_prob)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_low, 1 + clip_high))


def velocity_distance(velocity, velocity_ref) -> torch.Tensor:
    """Mean squared distance of two velocities: (B,); the KL's place in losses over the forward process (DiffusionNFT)."""
    return (velocity - velocity_ref).square().flatten(1).mean(1)


def kl_to_reference(mean, mean_ref, std: float, delta: float, scale: str = "gaussian") -> torch.Tensor:
    """KL of N(mean, std²) from N(mean_ref, std²), averaged over latent dimensions: (B,), with gradient in ``mean``.

    ``gaussian``: (μ−μ_ref)² / (2·std²), the true one (std² = s²Δ). ``flow_grpo``: the same times Δ, so that the β of
    Flow-GRPO's scripts (.04, .01) keeps its meaning.
    """
    if scale not in KL_SCALES:
        raise ValueError(f"kl_scale is {scale!r}; choose from {', '.join(KL_SCALES)}")
    divergence_B = (mean - mean_ref).square().flatten(1).mean(1) / (2 * std**2)
    return divergence_B * delta if scale == "flow_grpo" else divergence_B
