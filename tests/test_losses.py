"""The surrogate against the public codes and by hand; the KL has a gradient (invariant 6)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from otca import losses

CASES = [
    c
    for c in json.loads((Path(__file__).parent / "fixtures" / "public_grpo.json").read_text())["cases"]
    if c["kind"] == "clipped_loss"
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['source']}: {c['name']} {c['dtype']}")
def test_surrogate_equals_the_public_code(case):
    """Per-sample loss of Flow-GRPO's and DanceGRPO's training scripts on recorded inputs (both take the ratio in fp32)."""
    kind = getattr(torch, case["dtype"])
    new, old, advantage, expected = (
        torch.tensor(case[n], dtype=kind).flatten() for n in ("log_prob", "old_log_prob", "advantages", "per_sample")
    )
    limit, clip = case["adv_clip_max"], case["clip_range"]
    ours = losses.clipped_surrogate(new, old, advantage.clamp(-limit, limit), clip, clip)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_surrogate_by_hand_with_unequal_clips():
    """A = 1, r = e: clipped at 1.2 → −1.2; A = −1, r = 1/e: clipped at 0.9 → 0.9; inside the range: −A·r."""
    new = torch.tensor([1.0, -1.0, 0.05])
    out = losses.clipped_surrogate(new, torch.zeros(3), torch.tensor([1.0, -1.0, 2.0]), 0.1, 0.2)
    torch.testing.assert_close(out, torch.tensor([-1.2, 0.9, -2 * torch.e**0.05]))


def test_ratio_one_gives_minus_advantage():
    log_prob = torch.randn(5)
    advantage = torch.randn(5)
    assert torch.equal(losses.clipped_surrogate(log_prob, log_prob, advantage, 1e-4, 1e-4), -advantage)


def test_kl_is_the_gaussian_one_and_has_a_gradient():
    mean = torch.randn(3, 4, 2, requires_grad=True)
    reference, std, delta = torch.randn(3, 4, 2), 0.3, 0.1
    value = losses.kl_to_reference(mean, reference, std, delta)
    expected = kl_divergence(Normal(mean, std), Normal(reference, std)).flatten(1).mean(1)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
    torch.testing.assert_close(mean.grad, ((mean - reference) / std**2 / 8).detach())


def test_kl_scale_of_flow_grpo():
    """Its scale is the Gaussian KL times Δ: (μ−μ_ref)²/(2s²) with std = s·√Δ."""
    mean, reference, s, delta = torch.randn(2, 5), torch.randn(2, 5), 0.7, 0.08
    flow = losses.kl_to_reference(mean, reference, s * delta**0.5, delta, "flow_grpo")
    torch.testing.assert_close(flow, ((mean - reference) ** 2).mean(1) / (2 * s**2))
    case = next(c for c in CASES if "kl_loss" in c)
    mean, reference = (torch.tensor(case[n], dtype=torch.float64) for n in ("mean", "mean_ref"))
    std, s = (float(torch.tensor(case[n]).flatten()[0]) for n in ("std", "std_dev_t"))
    ours = losses.kl_to_reference(mean, reference, std, (std / s) ** 2, "flow_grpo").mean()
    assert abs(float(ours) - case["kl_loss"]) < 1e-6 * abs(case["kl_loss"])
    with pytest.raises(ValueError, match="kl_scale"):
        losses.kl_to_reference(mean, reference, 1.0, 1.0, "exact")
