"""CoCA (Liao et al. 2025, arXiv 2505.19196), OTCA's predecessor: what each step adds to the likeness of x̂0 and the final latent.

Differs from its source (Stable Diffusion 1.4, DDPO, one reward) in the sampler and in mixing rewards by static weights of
z-scores; its windows of 5 of 50 steps are a tenth of the steps here.
"""

from itertools import pairwise

import torch

from otca.config import TrainConfig
from otca.credit import group_zscore
from otca.methods import Method, clean_states_SB, zscore_advantage_BK
from otca.types import Needs, Scores, Trajectory

WINDOWS = 10
"""Windows that the steps are divided into."""


def contributions_TB(clean_SB: torch.Tensor) -> torch.Tensor:
    """Share of each step in the rise of cos(x̂0, final latent), (T, B), summing to 1; steps of a window share alike.

    clean_SB: clean predictions at each state, the last one final. The rise of a window is the difference of mean
    similarities, of the first one from the similarity at the start; nothing is truncated, so shares may be negative.
    """
    flat_SBD = clean_SB.flatten(2).float()
    similarity_SB = torch.nn.functional.cosine_similarity(flat_SBD, flat_SBD[-1:], dim=2)
    windows = similarity_SB[1:].split(max(1, round((len(similarity_SB) - 1) / WINDOWS)))
    means = [similarity_SB[0], *(window.mean(0) for window in windows)]
    gains = [after - before for before, after in pairwise(means)]
    total_B = torch.stack(gains).sum(0)
    return torch.cat([(gain / (total_B * len(window))).expand(len(window), -1) for gain, window in zip(gains, windows)])


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """K = 1, advantage 1: credit is clip(Σ_k w_k z_k)·S_t (S_t: shares from t on), standardised in the group at each step."""
    zscore_BK = zscore_advantage_BK(rollout, scores, config)
    limit = config.loss.advantage_clip
    fused_B = (zscore_BK * torch.tensor(config.weights_K)).sum(1).clamp(-limit, limit)
    from_here_TB = contributions_TB(clean_states_SB(rollout)).cpu().flip(0).cumsum(0).flip(0)
    shaped_BT = (fused_B * from_here_TB).T
    credit_TB = group_zscore(shaped_BT, rollout.group_B, config.credit.advantage_epsilon).T
    return credit_TB.unsqueeze(2), torch.ones(len(fused_B), 1)


METHOD = Method(
    "coca",
    "CoCA: summed later contributions of the steps to the final latent, standardised step by step",
    assign,
    needs=lambda config: Needs.VELOCITY,
)
