"""How far a method's noisy gradient carries each objective: signal over noise, from products of gradients of many batches.

M methods, T trained steps, K objectives, F folds of batches. Products are summed over pairs of *different* batches, so that no
batch's noise meets itself: the sums estimate products of expectations without bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Products:
    """Sums of products of gradients; in ``cross_FFMTK`` no batch meets itself."""

    cross_FFMTK: np.ndarray  # over pairs of batches, one a fold: ⟨gradient of method m at step t, true gradient of k⟩
    gram_FMTT: np.ndarray  # over a fold's batches: ⟨gradient at t, gradient at t'⟩
    count_F: np.ndarray  # batches


def signal_MK(products: Products, weights_MT: np.ndarray, folds: np.ndarray | None = None) -> np.ndarray:
    """Rise of objective k along method m's update of unit length: ⟨E g_m, ∇J_k⟩ / √E|g_m|², steps weighted, (M, K).

    Its square is what a batch is worth: a method with twice the signal gets as far on a quarter of the samples. ``folds``:
    which to use (default all).
    """
    chosen = np.arange(len(products.count_F)) if folds is None else folds
    count = products.count_F[chosen].sum()
    cross_MTK = products.cross_FFMTK[np.ix_(chosen, chosen)].sum((0, 1)) / (count * (count - 1))
    gram_MTT = products.gram_FMTT[chosen].sum(0) / count
    rise_MK = np.einsum("mt,mtk->mk", weights_MT, cross_MTK)
    length_M = np.sqrt(np.einsum("mt,ms,mts->m", weights_MT, weights_MT, gram_MTT))
    return rise_MK / length_M[:, None]


def jackknife_MK(products: Products, weights_MT: np.ndarray) -> np.ndarray:
    """Standard error of `signal_MK`, leaving out one fold at a time, (M, K)."""
    everything = np.arange(len(products.count_F))
    left_FMK = np.stack([signal_MK(products, weights_MT, np.delete(everything, fold)) for fold in everything])
    return np.sqrt((len(everything) - 1) / len(everything) * np.square(left_FMK - left_FMK.mean(0)).sum(0))


def equalising_MT(products: Products) -> np.ndarray:
    """Weights of steps in proportion to 1 / E|g_t|², averaging 1: a step counts as its gradient is precise, (M, T)."""
    power_MT = np.einsum("mtt->mt", products.gram_FMTT.sum(0))
    weights_MT = 1 / power_MT
    return weights_MT / weights_MT.mean(axis=1, keepdims=True)
