"""Policy loss: the clipped surrogate and the KL to a reference, elementwise (METHOD §3)."""

from __future__ import annotations

import torch

KL_SCALES = ("gaussian", "flow_grpo")


def clipped_surrogate(log_prob, old_log_prob, advantage, clip_low: float, clip_high: float) -> torch.Tensor:
    """max(−A·r, −A·clip(r, 1−ε_lo, 1+ε_hi)) with r = exp(log_prob − old_log_prob), elementwise (the caller averages)."""
    ratio = torch.exp(log_prob - old_log_prob)
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip_low, 1 + clip_high))


def kl_to_reference(mean, mean_ref, std: float, delta: float, scale: str = "gaussian") -> torch.Tensor:
    """KL of N(mean, std²) from N(mean_ref, std²), averaged over latent dimensions: (B,), with gradient in ``mean``.

    ``gaussian``: (μ−μ_ref)² / (2·std²), the true one (std² = s²Δ). ``flow_grpo``: the same times Δ, so that the β of
    Flow-GRPO's scripts (.04, .01) keeps its meaning.
    """
    if scale not in KL_SCALES:
        raise ValueError(f"kl_scale is {scale!r}; choose from {', '.join(KL_SCALES)}")
    divergence_B = (mean - mean_ref).square().flatten(1).mean(1) / (2 * std**2)
    return divergence_B * delta if scale == "flow_grpo" else divergence_B
