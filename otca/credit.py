"""OTCA's credit, equation by equation: which step of which sample earned how much of which objective.

Every method is a choice of two tensors in one equation (METHOD §2):

    advantage_TB = Σ_k credit_TBK · advantage_BK                                                        (1)

T denoising steps, S = T + 1 states (0 = noise), B samples in groups of G, K objectives. Pure torch, no state: another trainer
calls `otca_advantage_TB`, or its parts (`reproduce/plugins/`).
Marks: [paper] stated by arXiv 2604.19234, [reader] read off it by others, [sibling] in a predecessor's code, [ours].
"""

from __future__ import annotations

import torch

from otca.types import Total, alone


def batch_mean(value_X: torch.Tensor, total: Total = alone) -> torch.Tensor:
    """Mean over all elements of all processes, a scalar."""
    return total(value_X.sum()) / total(torch.tensor(float(value_X.numel())))


# ------------------------------------------------------------------------------------------------------- advantages


def _slots(group_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of each sample's group (B,), and the groups' sizes (P, 1) in float64."""
    _, slot_B, count_P = torch.unique(group_B, return_inverse=True, return_counts=True)
    return slot_B, count_P.double().unsqueeze(1)


def group_center(reward_BK: torch.Tensor, group_B: torch.Tensor) -> torch.Tensor:
    """Rewards less the mean of their group, (B, K) float64. A constant group gives exactly 0."""
    reward, (slot_B, count_P1) = reward_BK.double(), _slots(group_B)
    shape = (len(count_P1), reward.shape[1])
    mean_PK = reward.new_zeros(shape).index_add_(0, slot_B, reward) / count_P1
    index_BK = slot_B.unsqueeze(1).expand_as(reward)
    high_PK = reward.new_full(shape, -torch.inf).scatter_reduce_(0, index_BK, reward, "amax")
    low_PK = reward.new_full(shape, torch.inf).scatter_reduce_(0, index_BK, reward, "amin")
    return torch.where((high_PK == low_PK)[slot_B], 0.0, reward - mean_PK[slot_B])


def group_zscore(reward_BK: torch.Tensor, group_B: torch.Tensor, eps: float = 1e-4) -> torch.Tensor:
    """Rewards standardised within each group: (r − mean) / (population std + eps), (B, K).

    group_B: (B,) integers, equal for samples of one prompt slot. A constant group gives exactly 0.
    """
    centered_BK, (slot_B, count_P1) = group_center(reward_BK, group_B), _slots(group_B)
    square_PK = centered_BK.new_zeros(len(count_P1), centered_BK.shape[1]).index_add_(0, slot_B, centered_BK.square())
    std_PK = (square_PK / count_P1).sqrt()
    return (centered_BK / (std_PK[slot_B] + eps)).to(reward_BK.dtype)


# ------------------------------------------------------- TCD: trajectory-level credit decomposition [reader], §2.1


def tcd_weights_TB(
    latents_SB: torch.Tensor, eps: float = 1e-3, normalise: str = "mean", trained_T: torch.Tensor | None = None
) -> torch.Tensor:
    """Share of each step in the progress toward the final latent: (T, B), 0 at untrained steps.

    latents_SB: (S, B, …) states, the last one final. ``normalise``: weights of a sample average 1 over the T' trained
    steps ("mean" [ours]) or sum to 1 ("sum"). ``trained_T``: (T,) bool, default all.
    """
    if normalise not in ("mean", "sum"):
        raise ValueError(f"normalise is {normalise!r}; choose mean or sum")
    x_SBD = latents_SB.flatten(2).float()
    #   s_SB = cos(x_S, x_final)
    similarity_SB = torch.nn.functional.cosine_similarity(x_SBD, x_SBD[-1:], dim=2)
    #   d_TB = max(s_{t+1} − s_t, 0) + ε
    progress_TB = (similarity_SB[1:] - similarity_SB[:-1]).clamp(min=0) + eps
    #   w_TB = T' · d_TB / Σ_t d_TB
    if trained_T is None:
        trained_T = torch.ones(len(progress_TB), dtype=torch.bool, device=progress_TB.device)
    progress_TB = progress_TB * trained_T.to(progress_TB).unsqueeze(1)
    share_TB = progress_TB / progress_TB.sum(dim=0, keepdim=True)
    return share_TB * int(trained_T.sum()) if normalise == "mean" else share_TB


def permuted_TB(weights_TB: torch.Tensor, trained_T: torch.Tensor, seed_B: list[int]) -> torch.Tensor:
    """A control: the weights of each sample in a random order of its trained steps, drawn from the sample's seed, (T, B)."""
    out_TB, steps = weights_TB.clone(), torch.nonzero(trained_T).flatten()
    for b, seed in enumerate(seed_B):
        order = torch.randperm(len(steps), generator=torch.Generator().manual_seed(seed))
        out_TB[steps, b] = weights_TB[steps[order], b]
    return out_TB


# ------------------------------------------------------------------- MOCA: multi-objective credit allocation, §2.2


def min_norm_weights_BK(advantage_BK: torch.Tensor) -> torch.Tensor:
    """c* = argmin over the simplex of (Σ_k c_k A_k)² for each sample, in closed form: (B, K) [reader, sibling].

    All positive: the smallest takes all. All negative: the largest does. Mixed signs: the two extremes cancel.
    All zero: 1/K each.
    """
    lowest_B, low_B = advantage_BK.min(dim=1)
    highest_B, high_B = advantage_BK.max(dim=1)
    #   c_hi = −A_lo / (A_hi − A_lo), held in [0, 1]: 0 when all are positive, 1 when all are negative
    gap_B = highest_B - lowest_B
    share_B = torch.where(gap_B > 0, -lowest_B / torch.where(gap_B > 0, gap_B, 1.0), (highest_B <= 0).to(advantage_BK))
    share_B = share_B.clamp(0, 1)
    c_BK = torch.zeros_like(advantage_BK)
    c_BK.scatter_add_(1, high_B.unsqueeze(1), share_B.unsqueeze(1))
    c_BK.scatter_add_(1, low_B.unsqueeze(1), (1 - share_B).unsqueeze(1))
    all_zero_B1 = (advantage_BK == 0).all(dim=1, keepdim=True)
    return torch.where(all_zero_B1, 1.0 / advantage_BK.shape[1], c_BK)


def moca_weights_BK(advantage_BK: torch.Tensor, rho: float = 0.5) -> torch.Tensor:
    """c = (1−ρ)·c* + ρ/K: min-norm weights mixed with uniform exploration, (B, K) [reader: exists; form and ρ ours].

    ρ = 0 silences every sample whose objectives disagree in sign; ρ = 1 is plain averaging.
    """
    if not 0 <= rho <= 1:
        raise ValueError(f"rho is {rho}; it must lie in [0, 1]")
    return (1 - rho) * min_norm_weights_BK(advantage_BK) + rho / advantage_BK.shape[1]


# --------------------------------------------------------------------------------------- OTCA and its halves: credit_TBK


def otca_TBK(advantage_BK: torch.Tensor, weight_TB: torch.Tensor, rho: float = 0.5) -> torch.Tensor:
    """OTCA: w_TB ⊗ c_BK, TCD's step weights times MOCA's objective weights, (T, B, K)."""
    return weight_TB.unsqueeze(2) * otca_moca_TBK(advantage_BK, len(weight_TB), rho)


def otca_tcd_TBK(weight_TB: torch.Tensor, weights_K: torch.Tensor) -> torch.Tensor:
    """TCD alone: w_TB ⊗ w_K, step weights times fixed objective weights (which sum to 1), (T, B, K)."""
    return weight_TB.unsqueeze(2) * weights_K


def otca_moca_TBK(advantage_BK: torch.Tensor, steps: int, rho: float = 0.5) -> torch.Tensor:
    """MOCA alone: 1 ⊗ c_BK, the same at every step (the equations as read give c no step index), a view (T, B, K)."""
    return moca_weights_BK(advantage_BK, rho).unsqueeze(0).expand(steps, -1, -1)


def otca_advantage_TB(
    reward_BK: torch.Tensor,
    group_B: torch.Tensor,
    latents_SB: torch.Tensor,
    trained_T: torch.Tensor | None = None,
    rho: float = 0.5,
    clip: float = 5.0,
) -> torch.Tensor:
    """The whole of OTCA for another trainer: what multiplies each transition's policy gradient, (T, B), within ± clip.

    reward_BK: raw rewards; group_B: (B,) integers, equal for samples of one prompt; latents_SB: (S, B, …) states from noise
    to final latent; trained_T: (T,) bool, default all but the last, which samplers leave noiseless.
    """
    if trained_T is None:
        trained_T = torch.arange(len(latents_SB) - 1) < len(latents_SB) - 2
    advantage_BK = group_zscore(reward_BK, group_B)
    weight_TB = tcd_weights_TB(latents_SB, trained_T=trained_T).to(advantage_BK)
    return fuse_TB(otca_TBK(advantage_BK, weight_TB, rho), advantage_BK).clamp(-clip, clip)


# ------------------------------------------------------------ objective-wise process credit, beyond the paper [ours]


def value_deltas_TBK(value_SBK: torch.Tensor) -> torch.Tensor:
    """δ_t = V_{t+1} − V_t: what each step added to the value of the state, (T, B, K)."""
    return value_SBK[1:] - value_SBK[:-1]


def shrunk_values_SBK(value_SBK: torch.Tensor, group_B: torch.Tensor, ridge: float = 1e-3, total: Total = alone) -> torch.Tensor:
    """Values of states, shrunk to what they foretell of the final reward, (S, B, K), centred in the group.

    value_SBK: (S, B, K) estimates, the last row the final rewards, which keep slope 1. At every state and objective the final
    reward is regressed on the estimate, both centred in the group, over the samples of the *other* groups, so that no sample's
    own reward enters its value; slope 1 where the others do not vary. ``ridge`` is a share of the estimates' variance.
    """
    slot_B = torch.unique(group_B, return_inverse=True)[1]
    centred_SBK = torch.stack([group_center(value_BK, group_B) for value_BK in value_SBK])
    sums_SPK = centred_SBK.new_zeros(len(centred_SBK), int(slot_B.max()) + 1, centred_SBK.shape[2])
    cross_SPK = sums_SPK.index_add(1, slot_B, centred_SBK * centred_SBK[-1])
    square_SPK = sums_SPK.index_add(1, slot_B, centred_SBK.square())
    #   β = Σ V̂·R / Σ V̂² over the other groups
    others_SPK = total(square_SPK.sum(1, keepdim=True)) - square_SPK
    slope_SPK = (total(cross_SPK.sum(1, keepdim=True)) - cross_SPK) / ((1 + ridge) * others_SPK).clamp(min=1e-300)
    slope_SPK = torch.where(others_SPK > 0, slope_SPK, 1.0)
    slope_SPK[-1] = 1.0
    return (slope_SPK[:, slot_B] * centred_SBK).to(value_SBK.dtype)


def explained_SK(value_SBK: torch.Tensor, total: Total = alone) -> torch.Tensor:
    """Share of the final rewards' variance that each state's value explains, (S, K) in [0, 1]; both centred in the group."""
    error_SK, spread_K = total((value_SBK - value_SBK[-1]).square().sum(1)), total(value_SBK[-1].square().sum(0))
    return (1 - error_SK / spread_K.clamp(min=1e-30)).clamp(0, 1)


def gae_TBK(increment_TBK: torch.Tensor, decay: float | torch.Tensor) -> torch.Tensor:
    """g_t = δ_t + λ·g_{t+1}: λ = 0 credits a step with its own increment, 1 with everything after it, (T, B, K).

    decay: λ, or λ_t of each step and objective (T, K).

    With λ = 1, g_t = V_T − V_t: the reward less a baseline of the state, an unbiased gradient whatever V is.
    """
    decay_TK = torch.as_tensor(decay).to(increment_TBK).expand(len(increment_TBK), increment_TBK.shape[2])
    out, later = [], torch.zeros_like(increment_TBK[0])
    for increment_BK, decay_K in zip(increment_TBK.flip(0), decay_TK.flip(0)):
        later = increment_BK + decay_K * later
        out.append(later)
    return torch.stack(out[::-1])


def process_advantage_TBK(
    value_SBK: torch.Tensor,
    group_B: torch.Tensor,
    decay: float | torch.Tensor,
    trained_T: torch.Tensor,
    eps: float = 1e-4,
    total: Total = alone,
) -> torch.Tensor:
    """g̃: generalised increments, centred in the group at each step, over their RMS at trained steps: (T, B, K).

    value_SBK: (S, B, K) estimated rewards of every state, the last one the final reward. A constant group gives 0.
    """
    gain_TBK = gae_TBK(value_deltas_TBK(value_SBK), decay)
    centered_TBK = torch.stack([group_center(gain_BK, group_B) for gain_BK in gain_TBK])
    square_TK = torch.stack([torch.stack([batch_mean(x_B, total) for x_B in x_BK.unbind(1)]) for x_BK in centered_TBK.square()])
    rms_K = square_TK[trained_T].mean(0).sqrt()
    return (centered_TBK / (rms_K + eps)).to(value_SBK.dtype)


# ------------------------------------------------------------------ credit-sampled steps, beyond the paper [ours]


def inclusion_TB(size_TB: torch.Tensor, count: int) -> torch.Tensor:
    """Probability of each step to be trained: proportional to its size, at most 1, ``count`` in all for each sample, (T, B).

    size_TB: (T, B) ≥ 0, 0 where a step cannot be trained. A sample with fewer steps of some size than ``count`` trains
    them all.
    """
    size_TB = size_TB.double()
    certain_TB = torch.zeros_like(size_TB, dtype=torch.bool)
    while True:  # steps whose share exceeds 1 are certain; the others divide what is left
        left_TB = torch.where(certain_TB, 0.0, size_TB)
        rest_B = (count - certain_TB.sum(0)).clamp(min=0) / left_TB.sum(0).clamp(min=1e-300)
        share_TB = torch.where(certain_TB, 1.0, left_TB * rest_B)
        more_TB = (share_TB >= 1) & ~certain_TB & (size_TB > 0)
        if not more_TB.any():
            return share_TB
        certain_TB |= more_TB


def sampled_weights_TB(inclusion_TB: torch.Tensor, start_B: torch.Tensor) -> torch.Tensor:
    """Systematic sampling: step t is drawn where the running sum of probabilities passes start + an integer, (T, B).

    start_B in [0, 1). Drawn steps weigh 1/probability, the others 0: for a uniform start the gradient's expectation is that of
    training all steps.
    """
    passed_TB = torch.cumsum(inclusion_TB, dim=0) - start_B + 1e-12
    before_TB = torch.cat([torch.zeros_like(passed_TB[:1]) - start_B + 1e-12, passed_TB[:-1]])
    drawn_TB = torch.floor(passed_TB) > torch.floor(before_TB)
    return torch.where(drawn_TB & (inclusion_TB > 0), 1 / inclusion_TB.clamp(min=1e-300), 0.0)


# ------------------------------------------------------------------------------------------------------ equation (1)


def fuse_TB(credit_TBK: torch.Tensor, advantage_BK: torch.Tensor) -> torch.Tensor:
    """advantage_TB = Σ_k credit_TBK · advantage_BK, (T, B) of (T, B, K) and (B, K)."""
    return (credit_TBK * advantage_BK.unsqueeze(0)).sum(dim=2)


def rms_ratio(advantage_TB: torch.Tensor, target_TB: torch.Tensor, trained_T: torch.Tensor, total: Total = alone) -> float:
    """Factor that brings the RMS of advantage_TB over trained steps to that of target_TB (1 if it is all zero)."""
    rms, target = rms_over(advantage_TB, trained_T, total), rms_over(target_TB, trained_T, total)
    return target / rms if rms > 0 else 1.0


def rms_over(advantage_TB: torch.Tensor, trained_T: torch.Tensor, total: Total = alone) -> float:
    """Root mean square over samples and trained steps."""
    return float(batch_mean(advantage_TB[trained_T].square(), total).sqrt())
