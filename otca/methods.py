"""Methods: each is a choice of credit_TBK and advantage_BK, plus settings it changes. OTCA and its two halves live here.

A new method is one small file in `baselines/` that defines ``METHOD``; the trainer knows nothing of names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from otca import credit, losses
from otca.config import TrainConfig
from otca.sampling import clean_prediction
from otca.types import Credit, Needs, Scores, Total, Trajectory, alone


@dataclass(frozen=True)
class Method:
    """A method under a name.

    ``assign(rollout, scores, config)`` returns (credit_TBK, advantage_BK). ``settings`` are dotted config defaults that the
    method brings along (the command line still wins). ``needs(config)``: see `Needs`. ``loss`` turns one
    `losses.Transition` into losses (B,). A method with ``forward_loss`` trains on the forward process of its samples instead:
    it turns one `losses.NoisedSample` into losses (B,), and ``old_policy_decay(n)`` is the decay, after n updates, of the old
    policy that follows the trained one.
    """

    name: str
    summary: str
    assign: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    settings: dict[str, object] = field(default_factory=dict)
    needs: Callable[[TrainConfig], Needs] = lambda config: Needs.NOTHING
    loss: Callable[[losses.Transition], torch.Tensor] = losses.surrogate
    forward_loss: Callable[[losses.NoisedSample], torch.Tensor] | None = None
    old_policy_decay: Callable[[int], float] = lambda updates: 0.0


# ------------------------------------------------------------------------------------------------- building blocks


def zscore_advantage_BK(rollout: Trajectory, scores: Scores, config: TrainConfig) -> torch.Tensor:
    """Per-objective z-score in the group."""
    return credit.group_zscore(scores.reward_BK, rollout.group_B, config.credit.advantage_epsilon)


def uniform_TBK(weight_BK: torch.Tensor, steps: int) -> torch.Tensor:
    """The same objective weights at every step: (T, B, K) view of (B, K)."""
    return weight_BK.unsqueeze(0).expand(steps, -1, -1)


def static_TBK(rollout: Trajectory, config: TrainConfig) -> torch.Tensor:
    """Fixed objective weights w_k, equal at every step and for every sample."""
    weights_K = torch.tensor(config.weights_K, dtype=torch.float32)
    return uniform_TBK(weights_K.expand(len(rollout.prompts), -1), len(rollout.trained_T))


def clean_states_SB(rollout: Trajectory) -> torch.Tensor:
    """The clean prediction x̂0 at every state, the final latent last: (S, B, …); for methods that need VELOCITY."""
    states = zip(rollout.latents_SB[:-1], rollout.velocity_TB, rollout.sigma_S[:-1])
    return torch.stack([*(clean_prediction(x, v, float(sigma)) for x, v, sigma in states), rollout.latents_SB[-1]])


def tcd_TB(rollout: Trajectory, config: TrainConfig, total: Total = alone) -> torch.Tensor:
    """TCD's step weights as the settings have them, (T, B); controls take away what they know."""
    settings, trained_T = config.credit, rollout.trained_T
    latents_SB = clean_states_SB(rollout) if settings.tcd_latent == "x0_hat" else rollout.latents_SB
    weights_TB = credit.tcd_weights_TB(latents_SB, settings.tcd_epsilon, settings.tcd_normalise, trained_T)
    if settings.tcd_control == "permuted":
        weights_TB = credit.permuted_TB(weights_TB, trained_T, rollout.seed_B)
    elif settings.tcd_control == "averaged":
        weights_TB = (
            torch.stack([credit.batch_mean(weight_B, total) for weight_B in weights_TB]).unsqueeze(1).expand_as(weights_TB)
        )
    return weights_TB.cpu()


# --------------------------------------------------------------------------------------------------------- methods


def _otca(rollout, scores, config, total=alone):
    advantage_BK = zscore_advantage_BK(rollout, scores, config)
    return credit.otca_TBK(advantage_BK, tcd_TB(rollout, config, total), config.credit.rho), advantage_BK


def _otca_tcd(rollout, scores, config, total=alone):
    weights_K = torch.tensor(config.weights_K, dtype=torch.float32)
    return credit.otca_tcd_TBK(tcd_TB(rollout, config, total), weights_K), zscore_advantage_BK(rollout, scores, config)


def _otca_moca(rollout, scores, config):
    advantage_BK = zscore_advantage_BK(rollout, scores, config)
    return credit.otca_moca_TBK(advantage_BK, len(rollout.trained_T), config.credit.rho), advantage_BK


def _tcd_needs(config: TrainConfig) -> Needs:
    return Needs.WHOLE_BATCH | (Needs.VELOCITY if config.credit.tcd_latent == "x0_hat" else Needs.NOTHING)


METHODS = {
    method.name: method
    for method in (
        Method("otca", "OTCA: trajectory credit (TCD) × objective credit (MOCA)", _otca, needs=_tcd_needs),
        Method("otca_tcd", "OTCA with TCD only, static objective weights", _otca_tcd, needs=_tcd_needs),
        Method("otca_moca", "OTCA with MOCA only, every step alike", _otca_moca),
    )
}


def assign_credit(method: Method, rollout: Trajectory, scores: Scores, config: TrainConfig, total: Total = alone) -> Credit:
    """Apply a method: equation (1), then clipping to ± ``loss.advantage_clip``; with diagnostics for the log."""
    whole_batch = {"total": total} if Needs.WHOLE_BATCH in method.needs(config) else {}
    credit_TBK, advantage_BK = method.assign(rollout, scores, config, **whole_batch)
    advantage_TB = credit.fuse_TB(credit_TBK, advantage_BK)
    trained_T = rollout.trained_T
    zscore_BK = zscore_advantage_BK(rollout, scores, config)
    scale = 1.0
    if config.credit.match_rms:
        static_TB = credit.fuse_TB(static_TBK(rollout, config), zscore_BK)
        scale = credit.rms_ratio(advantage_TB, static_TB, trained_T, total)
        advantage_TB = advantage_TB * scale
    limit = config.loss.advantage_clip
    clipped_TB = advantage_TB.clamp(-limit, limit)
    return Credit(
        advantage_TB=clipped_TB,
        advantage_TBK=(scale * credit_TBK * advantage_BK).clamp(-limit, limit),
        step_weight_TB=_step_weights_TB(clipped_TB, rollout, config.credit.sampled_steps),
        credit_TBK=credit_TBK,
        advantage_BK=advantage_BK,
        diagnostics=_diagnostics(credit_TBK, advantage_BK, advantage_TB, zscore_BK, rollout, scores),
    )


def _step_weights_TB(advantage_TB: torch.Tensor, rollout: Trajectory, sampled_steps: int) -> torch.Tensor:
    """1 at trained steps; or, of ``sampled_steps`` drawn ones a sample, their inverse probability. The draw is the seed's."""
    trained_TB = rollout.trained_T.to(advantage_TB).unsqueeze(1).expand_as(advantage_TB)
    if not sampled_steps:
        return trained_TB
    start_B = torch.tensor([seed % 2**53 / 2**53 for seed in rollout.seed_B], dtype=torch.float64)
    inclusion_TB = credit.inclusion_TB(advantage_TB.abs() * trained_TB, sampled_steps)
    return credit.sampled_weights_TB(inclusion_TB, start_B).to(advantage_TB)


def _diagnostics(credit_TBK, advantage_BK, advantage_TB, zscore_BK, rollout, scores) -> dict[str, float]:
    """RMS, conflict rate (share of samples whose objectives disagree in sign), groups without any signal, mean weights.

    ``credit_step_<t>_<name>`` is the size of what an objective gives a step, mean |credit · advantage| over samples.
    """
    trained_T, group_B = rollout.trained_T, rollout.group_B
    disagree_B = (zscore_BK.amax(1) > 0) & (zscore_BK.amin(1) < 0)
    dead = [bool((zscore_BK[group_B == g] == 0).all()) for g in group_B.unique()]
    constant = [bool((zscore_BK[group_B == g] == 0).all(0).any()) for g in group_B.unique()]
    out = {
        "advantage_rms": credit.rms_over(advantage_TB, trained_T),
        "conflict_rate": float(disagree_B.float().mean()),
        "dead_groups": float(sum(dead)),
        "groups_with_constant_reward": float(sum(constant)),
    }
    if credit_TBK.shape[2] == len(scores.names):
        for name, weight in zip(scores.names, credit_TBK[trained_T].mean(dim=(0, 1))):
            out[f"weight_{name}"] = float(weight)
    for t, weight in enumerate(credit_TBK.sum(2).mean(1)):
        out[f"weight_step_{t}"] = float(weight) if trained_T[t] else 0.0
    if credit_TBK.shape[2] == len(scores.names):
        for t, size_K in enumerate((credit_TBK * advantage_BK).abs().mean(1)):
            out |= {f"credit_step_{t}_{n}": float(s) if trained_T[t] else 0.0 for n, s in zip(scores.names, size_K)}
    return out
