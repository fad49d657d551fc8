"""Set-level metrics in a feature space: kernel distance, Fréchet distance, diversity within a prompt."""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg

FRECHET_SAMPLES = 2000
"""Fewer samples than this give a Fréchet distance that is mostly bias; it is then not reported."""


def kernel_distance(feature_ND: torch.Tensor, reference_MD: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)³ (KID, Bińkowski et al. 2018), ×1 on raw features."""
    x, y = feature_ND.double(), reference_MD.double()
    n, m, d = len(x), len(y), x.shape[1]
    if n < 2 or m < 2:
        raise ValueError(f"kernel distance needs two samples on each side, got {n} and {m}")
    kxx, kyy, kxy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within_x = (kxx.sum() - kxx.diagonal().sum()) / (n * (n - 1))
    within_y = (kyy.sum() - kyy.diagonal().sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * kxy.mean())


def frechet_distance(feature_ND: torch.Tensor, reference_MD: torch.Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two sets (Heusel et al. 2017): ‖Δμ‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)."""
    x, y = feature_ND.double().numpy(), reference_MD.double().numpy()
    gap = x.mean(0) - y.mean(0)
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(cov_x @ cov_y)
    return float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(root.real))


def diversity(feature_ND: torch.Tensor, samples_per_prompt: int) -> float:
    """Mean over prompts of the mean pairwise cosine distance between a prompt's samples (neighbours in the list), 0 to 2."""
    if samples_per_prompt < 2:
        raise ValueError("diversity needs at least two samples a prompt")
    unit = torch.nn.functional.normalize(feature_ND, dim=1).unflatten(0, (-1, samples_per_prompt))
    cosine = unit @ unit.transpose(1, 2)
    pairs = samples_per_prompt * (samples_per_prompt - 1)
    off_diagonal = cosine.sum(dim=(1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(1)
    return float((1 - off_diagonal / pairs).mean())
