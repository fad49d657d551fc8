"""The surrogate against the public codes and by hand; the KL has a gradient (invariant 6)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from otca import losses, sampling
from otca.sampling import sigmas_S

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
    ours = losses.clipped_surrogate(new - old, advantage.clamp(-limit, limit), clip, clip)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_surrogate_by_hand_with_unequal_clips():
    """A = 1, r = e: clipped at 1.2 → −1.2; A = −1, r = 1/e: clipped at 0.9 → 0.9; inside the range: −A·r; r = 1: −A."""
    new = torch.tensor([1.0, -1.0, 0.05, 0.0])
    out = losses.clipped_surrogate(new, torch.tensor([1.0, -1.0, 2.0, 3.0]), 0.1, 0.2)
    torch.testing.assert_close(out, torch.tensor([-1.2, 0.9, -2 * torch.e**0.05, -3.0]))


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


def scaled_step(kind, t, sigma, scale, velocity, noise):
    """Gradient with respect to the velocity of the loss of a unit advantage, for a transition drawn with ``noise``."""
    velocity = velocity.clone().requires_grad_()
    x, levels = torch.zeros_like(velocity), (sigma[t], sigma[t + 1], 0.7)
    prev, old, mean, std = sampling.step(kind, x, velocity.detach(), *levels, noise=noise, sigma_max=sigma[1])
    _, new, mean, _ = sampling.step(kind, x, velocity, *levels, prev=prev, sigma_max=sigma[1])
    one = torch.ones(len(x))
    step = losses.Transition(new - old, one, one[:, None], mean, None, std, sigma[t] - sigma[t + 1], 1.0, 1.0, scale)
    return torch.autograd.grad(losses.surrogate(step).sum(), velocity)[0]


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps", "cps_mse"])
def test_equal_steps_have_gradients_of_one_size(kind):
    """The same noise and advantage: the same gradient at every step, and the mean square of the exact ones."""
    sigma = sigmas_S(6, 3.0).tolist()
    velocity, noise = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)).double()
    slopes = [sampling.velocity_slopes(kind, *sigma[t : t + 2], 0.7, sigma[1]) for t in range(5)]
    scales, _ = losses.equal_step_scales([slope for slope, _ in slopes], [drift**2 for _, drift in slopes])
    equal = torch.stack([scaled_step(kind, t, sigma, scales[t], velocity, noise).norm() for t in range(5)])
    exact = torch.stack([scaled_step(kind, t, sigma, 1.0, velocity, noise).norm() for t in range(5)])
    torch.testing.assert_close(equal, equal[:1].expand(5))
    torch.testing.assert_close(equal.square().mean(), exact.square().mean())
    assert exact.max() > 1.5 * exact.min()


@pytest.mark.parametrize("scale", ["gaussian", "flow_grpo"])
def test_equal_steps_have_the_kl_of_the_velocity(scale):
    """A drift of the velocity costs the same at every step, and as much in all as with exact steps."""
    sigma = sigmas_S(6, 3.0).tolist()
    ends = list(pairwise(sigma))[:5]
    slopes = [sampling.velocity_slopes("flow_sde", *pair, 0.7, sigma[1]) for pair in ends]
    drifts = [drift**2 * (a - b if scale == "flow_grpo" else 1.0) for (_, drift), (a, b) in zip(slopes, ends)]
    _, factors = losses.equal_step_scales([slope for slope, _ in slopes], drifts)
    x, v, moved = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0)).double()
    exact = []
    for a, b in ends:
        (mean, std), (other, _) = (sampling.transition("flow_sde", x, w, a, b, 0.7, sigma[1]) for w in (v, v + moved))
        exact.append(losses.kl_to_reference(other, mean, std, a - b, scale))
    equal = [kl * factor for kl, factor in zip(exact, factors)]
    torch.testing.assert_close(torch.stack(equal), equal[0].expand(5, -1))
    torch.testing.assert_close(sum(equal), sum(exact))


def test_a_clip_range_allows_the_same_drift_in_each_dimension_whatever_their_number():
    """Means that move by u = .02 standard deviations in each dimension leave a range of u/√D in 32 % of samples (one sigma)."""
    generator = torch.Generator().manual_seed(0)
    for dims in (64, 1024):
        noise, clip = torch.randn(4000, dims, generator=generator), losses.clip_range(0.02 / 1024**0.5, dims, 1024)
        log_ratio = Normal(0.02, 1.0).log_prob(noise).sub(Normal(0.0, 1.0).log_prob(noise)).mean(1)
        assert abs(float((log_ratio.exp().sub(1).abs() > clip).float().mean()) - 0.317) < 0.05
    assert losses.clip_range(1e-4, 512, 0) == 1e-4
    assert losses.clip_range(1e-4, 512, 65536) == pytest.approx(1e-4 * 128**0.5)
