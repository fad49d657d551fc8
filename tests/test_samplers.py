"""Transitions against the public codes, torch.distributions and closed forms (invariant 5)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from otca import sampling
from otca.config import StepSelectionConfig
from otca.sampling import select_steps, sigmas_S

CASES = json.loads((Path(__file__).parent / "fixtures" / "public_grpo.json").read_text())["cases"]
STEPS = [c for c in CASES if c["kind"] in ("flow_sde", "dance_sde", "cps") and c.get("velocity_dtype", "float32") != "bfloat16"]


def tensor(case, name):
    return torch.tensor(case[name], dtype=getattr(torch, case["dtype"]))


@pytest.mark.parametrize("case", STEPS, ids=lambda c: f"{c['kind']}: {c['name']} {c['dtype']}")
def test_step_equals_the_public_code(case):
    """Same next state, log-probability, mean and std as Flow-GRPO's and DanceGRPO's functions on recorded inputs."""
    kind = "cps_mse" if case["kind"] == "cps" else case["kind"]
    given = {"noise": tensor(case, "noise")} if case["noise"] is not None else {"prev": tensor(case, "prev")}
    prev, log_prob, mean, std = sampling.step(
        kind,
        tensor(case, "x"),
        tensor(case, "velocity"),
        case["sigma"],
        case["sigma_next"],
        case["level"],
        sigma_max=case.get("sigma_max"),
        **given,
    )
    tolerance = {"rtol": 2e-6, "atol": 2e-6} if case["dtype"] == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(prev, tensor(case, "prev"), **tolerance)
    torch.testing.assert_close(mean, tensor(case, "mean"), **tolerance)
    torch.testing.assert_close(log_prob, tensor(case, "log_prob").reshape(log_prob.shape), **tolerance)
    std_given = torch.tensor(case["std"], dtype=torch.float64).flatten()
    torch.testing.assert_close(torch.full_like(std_given, std), std_given, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["flow_sde", "dance_sde", "cps"])
@pytest.mark.parametrize("sigma, sigma_next", [(1.0, 0.9), (0.7, 0.55), (0.2, 0.1)])
def test_log_prob_is_torch_distributions(kind, sigma, sigma_next):
    """Mean over latent dimensions of torch.distributions.Normal's log_prob."""
    x, v, noise = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    prev, log_prob, mean, std = sampling.step(kind, x, v, sigma, sigma_next, 0.7, noise=noise, sigma_max=0.9)
    expected = Normal(mean, std).log_prob(prev).flatten(1).mean(1)
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)
    again = sampling.step(kind, x, v, sigma, sigma_next, 0.7, prev=prev, sigma_max=0.9)
    assert torch.equal(again[1], log_prob) and torch.equal(again[0], prev)


def gaussian_run(kind: str, level: float, spread: float, steps: int = 200, count: int = 40000):
    """Final samples for data N(0.5, spread²), whose exact velocity is known: v = E[noise − data | x]."""
    generator = torch.Generator().manual_seed(1)
    sigma_S = sigmas_S(steps)
    x = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    for t in range(steps):
        sigma, after = float(sigma_S[t]), float(sigma_S[t + 1])
        total = (1 - sigma) ** 2 * spread**2 + sigma**2
        surprise = (x - (1 - sigma) * 0.5) / total
        data, noise = 0.5 + (1 - sigma) * spread**2 * surprise, sigma * surprise
        used = "ode" if t == steps - 1 else kind
        fresh = torch.randn(count, 1, generator=generator, dtype=torch.float64)
        x = sampling.step(used, x, noise - data, sigma, after, level, noise=fresh, sigma_max=float(sigma_S[1]))[0]
    return float(x.mean()), float(x.std())


@pytest.mark.parametrize("kind, level", [("flow_sde", 0.7), ("dance_sde", 0.3), ("ode", 0.0)])
def test_marginals_are_kept_with_many_steps(kind, level):
    """Gaussian data come out with their mean and spread (200 steps; within 2 %)."""
    mean, std = gaussian_run(kind, level, spread=0.4)
    assert abs(mean - 0.5) < 0.01
    assert abs(std / 0.4 - 1) < 0.02


def test_cps_keeps_a_point_mass_but_not_spread_data():
    """cps is exact where the data are one point; on spread data it shrinks the marginal (more at a larger level)."""
    mean, std = gaussian_run("cps", 0.7, spread=0.0)
    assert abs(mean - 0.5) < 1e-9 and std < 1e-9
    assert gaussian_run("cps", 0.7, spread=0.4)[1] < 0.4 * 0.97


def test_flow_sde_at_sigma_one_needs_the_next_grid_point():
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="sigma_max"):
        sampling.step("flow_sde", x, x, 1.0, 0.9, 0.7, noise=x)


def test_sigmas_are_shifted_as_stated():
    """s·σ/(1+(s−1)·σ) on linspace(1, 0, T+1), by hand for T = 4, s = 3."""
    torch.testing.assert_close(sigmas_S(4, 3.0), torch.tensor([1, 0.9, 0.75, 0.5, 0.0], dtype=torch.float64))
    assert sigmas_S(5)[0] == 1 and sigmas_S(5)[-1] == 0


def test_step_plans():
    def select(kind, steps, iteration, count=4):
        return select_steps(StepSelectionConfig(kind=kind, count=count), steps, iteration, np.random.default_rng(0))

    _, everything_T = select("all", 6, 0)
    assert everything_T.tolist() == [True] * 5 + [False]
    stochastic_T, some_T = select("random_fraction", 11, 0)
    assert int(some_T.sum()) == 6 and int(stochastic_T.sum()) == 10 and not some_T[-1]
    stochastic_T, first_T = select("first_k", 10, 7, 3)
    assert first_T.nonzero().flatten().tolist() == [0, 1, 2] and torch.equal(first_T, stochastic_T)
    starts = [int(select("window", 10, i)[1].nonzero()[0]) for i in (0, 24, 25, 60, 1000)]
    assert starts == [0, 0, 1, 2, 5]
    with pytest.raises(ValueError, match="count is 10"):
        select("window", 10, 0, 10)


def test_an_unknown_sampler_is_refused_and_not_taken_for_cps():
    with pytest.raises(ValueError, match="unknown sampler 'euler'"):
        sampling.transition("euler", torch.zeros(1), torch.zeros(1), 0.5, 0.4, 0.7)
