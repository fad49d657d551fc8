"""Policy loss: the clipped surrogate and the KL to a reference, elementwise.

Step scale. The mean μ of a transition is linear in the velocity v: ∂μ/∂v = c_t. So a unit advantage has a gradient with
respect to v of size g_t = c_t / std_t times the noise that was drawn, and the KL of a velocity that drifts by δ is
½·g_t²·mean δ². On `flow_sde` g_t grows about tenfold over the steps: late steps own the update.
``equal`` evens this out, as GRPO-Guard does in form (ratio exponent × std, loss / Δ), with the exact slope in place of Δ:

    r_t = exp(κ_t · (log p − log p_old)),  κ_t = ḡ / g_t,  ḡ² = mean over the trained steps of g_t²
    KL_t = κ_t² · Gaussian KL = ½·ḡ²·mean (v − v_ref)²      (flow_grpo: × the g²-weighted mean of Δ)

Every step then has the gradient ḡ·A and the same spread of log-ratios, so a clip range means the same at each of them. The
mean square of the gradient and the KL of an even drift stay what they are with ``exact`` (κ = 1), so β keeps its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Transition:
    """What a policy loss may read of one trained transition of one micro-batch."""

    log_ratio_B: torch.Tensor  # log p − log p_old, with gradient
    advantage_B: torch.Tensor  # fused and clipped
    advantage_BK: torch.Tensor  # its parts credit · advantage before fusing, each clipped
    mean: torch.Tensor  # (B, …) of the transition under the policy, with gradient
    old_mean: torch.Tensor | None  # and under the one that sampled, for methods that need MEAN
    std: float
    delta: float  # fall in σ
    clip_low: float  # the ratio is held in 1 − clip_low … 1 + clip_high
    clip_high: float
    ratio_scale: float = 1.0  # κ_t

    @property
    def scaled_log_ratio_B(self) -> torch.Tensor:
        """κ_t · log_ratio_B, what a ratio is made of unless the loss has a step scale of its own."""
        return self.log_ratio_B * self.ratio_scale


@dataclass(frozen=True)
class NoisedSample:
    """What a loss over the forward process may read of one noise level of one micro-batch."""

    clean: torch.Tensor  # (B, …) sampled latents
    noisy: torch.Tensor  # the same noised to sigma with fresh noise
    sigma: float
    velocity: torch.Tensor  # at noisy, with gradient
    old_velocity: torch.Tensor  # the old policy's
    advantage_B: torch.Tensor  # fused and within ± advantage_clip
    advantage_clip: float


def surrogate(step: Transition) -> torch.Tensor:
    """The loss of every method that brings none of its own: `clipped_surrogate` of the fused advantage, (B,)."""
    return clipped_surrogate(step.scaled_log_ratio_B, step.advantage_B, step.clip_low, step.clip_high)


def clipped_surrogate(log_ratio, advantage, clip_low: float, clip_high: float) -> torch.Tensor:
    """max(−A·r, −A·clip(r, 1−ε_lo, 1+ε_hi)) with r = exp(log_ratio), elementwise (the caller averages)."""
    ratio = torch.exp(log_ratio)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_low, 1 + clip_high))


def clip_range(clip: float, dims: int, stated_dims: int) -> float:
    """A clip range stated for latents of ``stated_dims`` numbers, at ``dims`` numbers; 0 means that it is stated for these.

    Where a mean moves by u standard deviations in each of D dimensions, the log-ratio, a mean over them, is normal with
    standard deviation u/√D. So a range that scales as 1/√D allows the same drift in each dimension.
    """
    return clip * (stated_dims / dims) ** 0.5 if stated_dims else clip


def equal_step_scales(slopes: Sequence[float], drifts: Sequence[float]) -> tuple[list[float], list[float]]:
    """Factors of ``step_scale: equal`` for each trained step: κ_t of the log-ratio, and the factor of the KL.

    ``slopes``: size of ∂ log p / ∂v for unit noise (up to a common factor); ``drifts``: KL of a unit drift of the velocity.
    """
    size = (sum(g * g for g in slopes) / len(slopes)) ** 0.5
    kl = sum(drifts) / len(drifts)
    return [size / g for g in slopes], [kl / a for a in drifts]


def velocity_distance(velocity, velocity_ref) -> torch.Tensor:
    """Mean squared distance of two velocities: (B,); the KL's place in losses over the forward process (DiffusionNFT)."""
    return (velocity - velocity_ref).square().flatten(1).mean(1)


def kl_to_reference(mean, mean_ref, std: float, delta: float, scale: str = "gaussian") -> torch.Tensor:
    """KL of N(mean, std²) from N(mean_ref, std²), averaged over latent dimensions: (B,), with gradient in ``mean``.

    ``gaussian``: (μ−μ_ref)² / (2·std²), the true one (std² = s²Δ). ``flow_grpo``: the same times Δ, so that the β of
    Flow-GRPO's scripts (.04, .01) keeps its meaning.
    """
    divergence_B = (mean - mean_ref).square().flatten(1).mean(1) / (2 * std**2)
    return divergence_B * delta if scale == "flow_grpo" else divergence_B
