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
    """A method under a name."""

    name: str
    summary: str
    assign: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    """(rollout, scores, config) → (credit_TBK, advantage_BK)."""
    settings: dict[str, object] = field(default_factory=dict)
    """Dotted config defaults that the method brings along; the command line still wins."""
    needs: Callable[[TrainConfig], Needs] = lambda config: Needs.NOTHING
    loss: Callable[[losses.Transition], torch.Tensor] = losses.surrogate
    """One transition → losses (B,)."""
    forward_loss: Callable[[losses.NoisedSample], torch.Tensor] | None = None
    """One noised sample → losses (B,): trains on the forward process of the samples instead."""
    old_policy_decay: Callable[[int], float] = lambda updates: 0.0
    """Decay, after so many updates, of the old policy that a `forward_loss` follows."""

    def evaluations_per_step(self, config: TrainConfig) -> int:
        """Network evaluations of training a step of a sample: forward 1, backward 2, reference and old policy 1 each."""
        return 3 + bool(config.loss.kl_beta) + bool(self.forward_loss)


# ------------------------------------------------------------------------------------------------- building blocks


def zscore_advantage_BK(rollout: Trajectory, scores: Scores, config: TrainConfig) -> torch.Tensor:
    """Per-objective z-score in the group."""
    return credit.group_zscore(scores.reward_BK, rollout.group_B, config.credit.advantage_epsilon)


def static_TBK(rollout: Trajectory, config: TrainConfig) -> torch.Tensor:
    """Fixed objective weights w_k, equal at every step and for every sample."""
    return torch.tensor(config.weights_K).expand(len(rollout.trained_T), len(rollout.prompts), -1)


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
        mean_T = torch.stack([credit.batch_mean(weight_B, total) for weight_B in weights_TB])
        weights_TB = mean_T.unsqueeze(1).expand_as(weights_TB)
    return weights_TB.cpu()


# --------------------------------------------------------------------------------------------------------- methods


def _otca(rollout, scores, config, total=alone):
    advantage_BK = zscore_advantage_BK(rollout, scores, config)
    return credit.otca_TBK(advantage_BK, tcd_TB(rollout, config, total), config.credit.rho), advantage_BK


def _otca_tcd(rollout, scores, config, total=alone):
    weight_TB, weights_K = tcd_TB(rollout, config, total), torch.tensor(config.weights_K)
    return credit.otca_tcd_TBK(weight_TB, weights_K), zscore_advantage_BK(rollout, scores, config)


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
    advantage_TB, scale = credit.fuse_TB(credit_TBK, advantage_BK), 1.0
    zscore_BK = zscore_advantage_BK(rollout, scores, config)
    if config.credit.match_rms:
        static_TB = credit.fuse_TB(static_TBK(rollout, config), zscore_BK)
        scale = credit.rms_ratio(advantage_TB, static_TB, rollout.trained_T, total)
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
    """RMS, share of samples whose objectives disagree in sign, groups without signal, mean weights, sizes of credit."""
    trained_T, steps = rollout.trained_T, range(len(rollout.trained_T))
    silent_PK = torch.stack([(zscore_BK[rollout.group_B == g] == 0).all(0) for g in rollout.group_B.unique()])
    out = {
        "advantage_rms": credit.rms_over(advantage_TB, trained_T),
        "conflict_rate": float(((zscore_BK.amax(1) > 0) & (zscore_BK.amin(1) < 0)).float().mean()),
        "dead_groups": float(silent_PK.all(1).sum()),
        "groups_with_constant_reward": float(silent_PK.any(1).sum()),
    }
    names = scores.names if credit_TBK.shape[2] == len(scores.names) else ()
    out |= {f"weight_{name}": float(w) for name, w in zip(names, credit_TBK[trained_T].mean(dim=(0, 1)))}
    weight_T, size_TK = credit_TBK.sum(2).mean(1) * trained_T, (credit_TBK * advantage_BK).abs().mean(1) * trained_T[:, None]
    out |= {f"weight_step_{t}": float(weight_T[t]) for t in steps}
    return out | {f"credit_step_{t}_{name}": float(size_TK[t, k]) for t in steps for k, name in enumerate(names)}
