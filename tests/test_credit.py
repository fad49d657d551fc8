"""The credit equations against hand-worked cases, a QP solver and properties."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from otca import credit

CASES = json.loads((Path(__file__).parent / "fixtures" / "public_grpo.json").read_text())["cases"]

numbers = st.floats(-5, 5, allow_nan=False, width=32).map(lambda v: 0.0 if abs(v) < 1e-3 else v)
rows = st.integers(1, 5).flatmap(lambda k: st.lists(numbers, min_size=k, max_size=k))


# ---------------------------------------------------------------------------------------------------- advantages


def test_group_zscore_by_hand():
    """Groups (1, 3) and (2, 2): ±1/(1 + eps) and exactly 0; groups are slots, whatever their text."""
    reward_BK = torch.tensor([[1.0], [2.0], [3.0], [2.0]])
    out = credit.group_zscore(reward_BK, torch.tensor([7, 3, 7, 3]), eps=0.5)
    torch.testing.assert_close(out, torch.tensor([[-1 / 1.5], [0], [1 / 1.5], [0]]))
    for value in (0.1, 1 / 3, 1e6, -7.7):  # a constant group is exactly 0
        assert not credit.group_zscore(torch.full((5, 2), value), torch.zeros(5, dtype=torch.long)).any()


def test_group_zscore_equals_flow_grpo():
    """Flow-GRPO's per-prompt statistics (population std + 1e-4) on its recorded rewards."""
    case = next(c for c in CASES if c["kind"] == "group_advantage" and c.get("global_std") is False)
    names = {p: i for i, p in enumerate(dict.fromkeys(case["prompts"]))}
    group_B = torch.tensor([names[p] for p in case["prompts"]])
    reward_B1 = torch.tensor(case["rewards"], dtype=torch.float64).reshape(-1, 1)
    expected = torch.tensor(case["advantages"], dtype=torch.float64).reshape(-1, 1)
    torch.testing.assert_close(credit.group_zscore(reward_B1, group_B, case["eps"]), expected, rtol=1e-9, atol=1e-12)


def test_group_zscore_equals_dance_grpo_up_to_its_sample_std():
    """DanceGRPO divides by the sample std + 1e-8: ours times √((n−1)/n) for its groups of n."""
    case = next(c for c in CASES if c["kind"] == "group_advantage" and c.get("use_group") is True)
    n = case["num_generations"]
    reward_B1 = torch.tensor(case["rewards"], dtype=torch.float64).reshape(-1, 1)
    ours = credit.group_zscore(reward_B1, torch.arange(len(reward_B1)) // n, eps=1e-8) * ((n - 1) / n) ** 0.5
    expected = torch.tensor(case["advantages"], dtype=torch.float64).reshape(-1, 1)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- TCD


def test_tcd_three_steps_by_hand():
    """Angles 90°, 60°, 60°+, 0° to the final state: gains ½, −, then the rest; the backward step earns only ε."""

    def at(degrees):
        return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]

    latents_SB = torch.tensor([[at(90)], [at(60)], [at(70)], [at(0)]])
    eps = 0.01
    gain = np.array([0.5 + eps, eps, 1 - np.cos(np.radians(70)) + eps])
    out = credit.tcd_weights_TB(latents_SB, eps=eps)
    np.testing.assert_allclose(out[:, 0].numpy(), 3 * gain / gain.sum(), rtol=1e-5)
    total = credit.tcd_weights_TB(latents_SB, eps=eps, normalise="sum")
    np.testing.assert_allclose(total[:, 0].numpy(), gain / gain.sum(), rtol=1e-5)


def test_tcd_untrained_steps_get_nothing():
    """And the length of a state is none of a cosine's business."""
    latents_SB = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    trained_T = torch.tensor([True, False, True, True, False])
    out = credit.tcd_weights_TB(latents_SB, trained_T=trained_T)
    torch.testing.assert_close(out, credit.tcd_weights_TB(7 * latents_SB, trained_T=trained_T), rtol=1e-4, atol=1e-5)
    assert torch.equal(out[~trained_T], torch.zeros(2, 3))
    torch.testing.assert_close(out.sum(0), torch.full((3,), 3.0))


def test_permuted_weights_stay_with_their_sample_and_its_trained_steps():
    """Each sample keeps its weights, in another order, the same for the same seed; the untrained step stays 0."""
    trained_T = torch.tensor([True, True, True, False, True])
    weights_TB = torch.rand(5, 40, generator=torch.Generator().manual_seed(0)) * trained_T.unsqueeze(1)
    shuffled_TB = credit.permuted_TB(weights_TB, trained_T, list(range(40)))
    assert torch.equal(shuffled_TB.sort(0).values, weights_TB.sort(0).values) and not shuffled_TB[3].any()
    assert torch.equal(shuffled_TB, credit.permuted_TB(weights_TB, trained_T, list(range(40))))
    stayed_TB = (shuffled_TB == weights_TB)[trained_T]
    assert 0.1 < stayed_TB.float().mean() < 0.4  # a quarter on average


# ---------------------------------------------------------------------------------------------------------- MOCA


@settings(max_examples=60, deadline=None)
@given(rows)
def test_min_norm_solves_the_quadratic_program(row):
    """No point of the simplex that scipy's SLSQP finds has a smaller (Σ c_k A_k)², degenerate rows included."""
    advantage = np.array(row, dtype=np.float64)
    c = credit.min_norm_weights_BK(torch.from_numpy(advantage).unsqueeze(0))[0].numpy()
    assert c.min() >= 0 and abs(c.sum() - 1) < 1e-12
    start = np.full(len(row), 1 / len(row))
    solved = minimize(
        lambda w: (w @ advantage) ** 2,
        start,
        jac=lambda w: 2 * (w @ advantage) * advantage,
        bounds=[(0, 1)] * len(row),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 200},
    )
    assert (c @ advantage) ** 2 <= solved.fun + 1e-7
    if advantage.min() > 0 or advantage.max() < 0:
        assert abs(abs(c @ advantage) - np.abs(advantage).min()) < 1e-9
    else:
        assert abs(c @ advantage) < 1e-9


def test_min_norm_named_cases():
    advantage_BK = torch.tensor([[1.0, 2.0], [-3.0, -1.0], [-1.0, 3.0], [0.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    expected = torch.tensor([[1, 0], [0, 1], [0.75, 0.25], [0.5, 0.5], [1, 0], [1, 0]])
    torch.testing.assert_close(credit.min_norm_weights_BK(advantage_BK), expected)


@given(st.floats(0, 1), rows)
def test_moca_fused_advantage_identity(rho, row):
    """(1−ρ)·sign·min|A_k|·[signs agree] + ρ·mean_k A_k."""
    a = np.array(row, dtype=np.float64)
    c = credit.moca_weights_BK(torch.from_numpy(a).unsqueeze(0), rho)[0].numpy()
    agree = a.min() > 0 or a.max() < 0
    expected = (1 - rho) * (np.sign(a[0]) * np.abs(a).min() if agree else 0.0) + rho * a.mean()
    assert abs(c @ a - expected) < 1e-9


def test_moca_limits_and_bounds():
    advantage_BK = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(credit.moca_weights_BK(advantage_BK, 1.0), torch.full((20, 3), 1 / 3))
    assert torch.equal(credit.moca_weights_BK(advantage_BK, 0.0), credit.min_norm_weights_BK(advantage_BK))
    with pytest.raises(ValueError, match="rho is 1.5"):
        credit.moca_weights_BK(advantage_BK, 1.5)


# -------------------------------------------------------------------------------------------------------- fusion


def test_fuse_by_hand_and_uniform_weights_are_plain_grpo_bit_for_bit():
    """Invariant 2: credit of ones with K = 1 changes no bit of the advantage, at any step."""
    credit_TBK = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]])
    assert torch.equal(credit.fuse_TB(credit_TBK, torch.tensor([[5.0, 7.0]])), torch.tensor([[19.0], [21.0]]))
    advantage_B1 = torch.randn(7, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(credit.fuse_TB(torch.ones(4, 7, 1), advantage_B1), advantage_B1[:, 0].expand(4, -1))


def test_rms_ratio_matches_and_leaves_zero_alone():
    trained_T = torch.tensor([True, True, False])
    a, b = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1))
    scaled = a * credit.rms_ratio(a, b, trained_T)
    assert abs(credit.rms_over(scaled, trained_T) - credit.rms_over(b, trained_T)) < 1e-6
    assert credit.rms_ratio(torch.zeros(3, 6), b, trained_T) == 1


def test_inclusion_is_proportional_and_capped():
    """Sizes 1, 1, 2 and two steps: ½, ½, 1; sizes 8, 1, 1: the first is certain, the others share one."""
    size_TB = torch.tensor([[1.0, 8.0, 0.0], [1.0, 1.0, 3.0], [2.0, 1.0, 0.0]])
    expected = torch.tensor([[0.5, 1.0, 0.0], [0.5, 0.5, 1.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(credit.inclusion_TB(size_TB, 2), expected)


@given(st.integers(2, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_sampled_steps_are_unbiased_by_enumeration(steps, count, seed):
    """Over every interval of the start in which the draw is the same, weights average 1 and as many steps are drawn as asked."""
    generator = torch.Generator().manual_seed(seed)
    size_T1 = torch.rand(steps, 1, generator=generator) * (torch.rand(steps, 1, generator=generator) < 0.8)
    inclusion = credit.inclusion_TB(size_T1, count)
    possible = int((size_T1 > 0).sum())
    assert inclusion.max() <= 1 and float(inclusion.sum()) == pytest.approx(min(count, possible), abs=1e-9)
    edges = sorted({0.0, 1.0, *(torch.cumsum(inclusion[:, 0], 0) % 1).tolist()})
    mean = torch.zeros(steps, dtype=torch.float64)
    for low, high in pairwise(edges):
        if high - low < 1e-9:  # rounding of equal sums
            continue
        weight = credit.sampled_weights_TB(inclusion, torch.tensor([(low + high) / 2], dtype=torch.float64))[:, 0]
        assert int((weight > 0).sum()) == min(count, possible)
        mean += (high - low) * weight
    torch.testing.assert_close(mean, (size_T1[:, 0] > 0).double(), rtol=0, atol=1e-6)
