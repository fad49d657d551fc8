"""GRPO-Guard (Wang et al. 2025, arXiv 2510.22319): ratios re-centred and re-scaled step by step, losses divided by Δ.

Differs from its source in the rewards' mixing (static weights of z-scores), in a last transition that is noiseless and
untrained, and in the learning rate, which is the tier's (there 1e-4). The mean log-ratio is biased
downward by b = mean (μ − μ_old)² / (2 std²), and its spread shrinks with std = s·√Δ, so a clip range means another thing
at every step; the guard takes both out, and the division by Δ evens out the gradients.
"""

import torch

from baselines.static_multi_reward import assign
from otca.losses import Transition, clipped_surrogate
from otca.methods import Method
from otca.types import Needs


def loss(step: Transition) -> torch.Tensor:
    """Clipped surrogate of r = exp((Δ log p + b)·std), over Δ: (B,). It has a step scale of its own, whatever loss.step_scale."""
    moved_B = (step.mean - step.old_mean).square().flatten(1).mean(1)
    log_ratio_B = (step.log_ratio_B + moved_B / (2 * step.std**2)) * step.std
    guarded = clipped_surrogate(log_ratio_B, step.advantage_B, step.clip_low, step.clip_high)
    return guarded / step.delta


METHOD = Method(
    "grpo_guard",
    "GRPO-Guard: static weights, ratios normalised step by step, loss over Δ",
    assign,
    settings={"loss.clip_low": 3e-6, "loss.clip_high": 3e-6, "loss.clip_dims": 65536},
    needs=lambda config: Needs.MEAN,
    loss=loss,
)
