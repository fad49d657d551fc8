"""Set metrics on known answers, and the evaluation rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.metrics.embedded import diversity, frechet_distance, kernel_distance


def normal(count, dimensions, shift=0.0, scale=1.0, seed=0):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) * scale + shift


def test_frechet_of_two_gaussians():
    """N(0, I) and N(m, s²I) in D dimensions: D·m² + D·(s−1)²."""
    x, y = normal(60000, 3), normal(60000, 3, shift=0.5, scale=2.0, seed=1)
    assert frechet_distance(x, y) == pytest.approx(3 * 0.25 + 3 * 1.0, rel=0.03)
    assert abs(frechet_distance(x, x)) < 1e-6


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    """Mean over repetitions of equal laws is 0 within its error, although each is finite; a shift is positive."""
    same = [kernel_distance(normal(40, 4, seed=2 * i), normal(40, 4, seed=2 * i + 1)) for i in range(200)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert kernel_distance(normal(200, 4), normal(200, 4, shift=1.0, seed=1)) > 1


def test_kernel_distance_by_hand():
    """Two points a side in one dimension: (x·y + 1)³ summed by hand."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    expected = 1 + 7**3 - 2 * np.mean([1, 1, 3**3, 4**3])
    assert kernel_distance(x, y) == pytest.approx(expected)


def test_diversity_of_equal_and_orthogonal_samples():
    a, b = torch.eye(2)
    assert diversity(torch.stack([a, a, b, b]), 2) == pytest.approx(0)
    assert diversity(torch.stack([a, b, 5 * a, 2 * b]), 2) == pytest.approx(1)
