"""DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117), the rival from outside GRPO: no log-probability, no SDE.

Samples come from the ODE. At noise levels of the sampling grid, with fresh noise on the final latents, the policy is pulled
toward them as far as they were good, and its mirror image about the old policy as far as they were bad. Differs from its
source in mixing rewards by static weights of z-scores (there: one summed reward, standardised over all samples) and in the
first-order solver.
"""

import torch

from baselines.static_multi_reward import assign
from otca.losses import NoisedSample
from otca.methods import Method
from otca.sampling import clean_prediction

BETA = 0.1
"""How far the positive model leans from the old policy toward the trained one (source: 0.1 with several rewards, else 1)."""


def forward_loss(level: NoisedSample) -> torch.Tensor:
    """clip_A/β · [r·‖x̂0⁺ − x0‖²/w⁺ + (1 − r)·‖x̂0⁻ − x0‖²/w⁻], (B,), means over dimensions; r = A/(2·clip_A) + ½ in [0, 1].

    v⁺ = β·v + (1 − β)·v_old, v⁻ = (1 + β)·v_old − β·v; w is the detached mean absolute error, at least 1e-5.
    """
    share_B = (level.advantage_B / (2 * level.advantage_clip) + 0.5).clamp(0, 1)
    toward = BETA * level.velocity + (1 - BETA) * level.old_velocity
    away = (1 + BETA) * level.old_velocity - BETA * level.velocity
    errors = [_normalised_error_B(clean_prediction(level.noisy, v, level.sigma), level.clean) for v in (toward, away)]
    return level.advantage_clip / BETA * (share_B * errors[0] + (1 - share_B) * errors[1])


def _normalised_error_B(predicted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    difference = (predicted - clean).flatten(1)
    weight_B = difference.detach().abs().mean(1).clamp(min=1e-5)
    return difference.square().mean(1) / weight_B


def old_policy_decay(updates: int) -> float:
    """Decay of the old policy after so many updates: min(0.001·n, ½)."""
    return min(0.001 * updates, 0.5)


METHOD = Method(
    "diffusion_nft",
    "DiffusionNFT: ODE samples, contrastive forward-process loss, old policy",
    assign,
    settings={"step_selection.kind": "ode", "loss.kl_beta": 1e-4, "optimizer.updates_per_iteration": 1},
    forward_loss=forward_loss,
    old_policy_decay=old_policy_decay,
)
