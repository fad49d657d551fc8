"""Signal over noise of gradients: estimates agree with what was drawn, and the whole study runs on a small model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from eval.signal import Products, equalising_MT, jackknife_MK, signal_MK
from reproduce import gradient_signal
from tests.toys import toy_config

FOLDS, BATCHES, STEPS, SIZE = 8, 400, 3, 50


def drawn(noise_T, seed=0):
    """Batches of one method whose gradient is the first unit vector at every step, plus noise; two objectives: e_0 and e_1."""
    rng = np.random.default_rng(seed)
    mean_TD, truth_KD = np.zeros((STEPS, SIZE)), np.eye(SIZE)[:2]
    mean_TD[:, 0] = 1
    gradient_NTD = mean_TD + np.array(noise_T)[:, None] * rng.normal(size=(BATCHES, STEPS, SIZE))
    truth_NKD = truth_KD + 0.5 * gradient_NTD.sum(1, keepdims=True) - 0.5 * mean_TD.sum(0)  # shares the method's noise
    fold_N = np.arange(BATCHES) % FOLDS
    cross = np.zeros((FOLDS, FOLDS, 1, STEPS, 2))
    gram = np.zeros((FOLDS, 1, STEPS, STEPS))
    sums = [(gradient_NTD[fold_N == f].sum(0), truth_NKD[fold_N == f].sum(0)) for f in range(FOLDS)]
    for f in range(FOLDS):
        for g in range(FOLDS):
            cross[f, g, 0] = sums[f][0] @ sums[g][1].T
        own = gradient_NTD[fold_N == f]
        cross[f, f, 0] -= np.einsum("ntd,nkd->tk", own, truth_NKD[fold_N == f])
        gram[f, 0] = np.einsum("ntd,nsd->ts", own, own)
    return Products(cross, gram, np.bincount(fold_N).astype(float))


def test_signal_is_the_rise_over_the_length_without_bias():
    """Three steps add up to 3 along e_0, nothing along e_1; noise of method and truth is shared and must not count."""
    noise = (1.0, 2.0, 4.0)
    products, alike = drawn(noise), np.ones((1, STEPS))
    expected = 3 / np.sqrt(9 + SIZE * sum(s * s for s in noise))
    found, error = signal_MK(products, alike)[0], jackknife_MK(products, alike)[0]
    assert abs(found[0] - expected) < 4 * error[0] and abs(found[1]) < 4 * error[1]
    assert 0 < error[0] < 0.2 * expected
    biased = Products(products.cross_FFMTK + np.eye(FOLDS)[:, :, None, None, None] * 1e4, products.gram_FMTT, products.count_F)
    assert signal_MK(biased, alike)[0, 1] > 4 * error[1]  # what a batch's own noise would have added


def test_steps_weighted_by_precision_carry_further():
    products = drawn((0.5, 2.0, 8.0))
    weights_MT = equalising_MT(products)
    assert weights_MT.mean() == pytest.approx(1) and weights_MT[0, 0] > 5 * weights_MT[0, 1] > 25 * weights_MT[0, 2]
    assert signal_MK(products, weights_MT)[0, 0] > 3 * signal_MK(products, np.ones((1, STEPS)))[0, 0]


def test_the_study_measures_writes_and_renders(toy_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    products = gradient_signal.measure(toy_config("static_multi_reward", toy_pipeline, **{"sampler.steps": 4}), 3, 3)
    folder = tmp_path / "results"
    gradient_signal.write(products, ("red", "blue"), folder / gradient_signal.PRODUCTS)
    again, methods, objectives = gradient_signal.read(folder / gradient_signal.PRODUCTS)
    assert methods == list(gradient_signal.METHODS) and objectives == ["red", "blue"] and again.count_F.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(again.cross_FFMTK, products.cross_FFMTK)
    shown = gradient_signal.render(folder)
    assert list(shown) == ["Method", *(f"{k}, {how}" for how in ("as credited", "by precision") for k in ("red", "blue"))]
    rows = pd.read_csv(folder / "signal.csv").set_index(["method", "objective", "steps"])["signal"]
    assert shown["blue, by precision"][-1].startswith(f"{1e5 * rows[methods[-1], 'blue', 'by precision']:,.0f}".replace("-", "−"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    gradient_signal.render(folder)
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
