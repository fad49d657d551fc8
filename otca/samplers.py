"""One transition of a rectified-flow sampler, stochastic or not, with its Gaussian log-probability.

Rectified flow: x_σ = (1−σ)·x_data + σ·noise, velocity v = noise − x_data, so x̂0 = x − σ·v and x̂1 = x + (1−σ)·v.
σ falls; Δ = σ − σ_next > 0. Every kind is a Gaussian N(mean, std²) for the next state:

flow_sde  Flow-GRPO (Liu et al. 2025): s = a·√(σ / (1−σ̃)), std = s·√Δ,
          mean = x·(1 − s²Δ/(2σ)) − v·(1 + s²(1−σ)/(2σ))·Δ;   σ̃ = σ, but `sigma_max` where σ = 1
dance_sde DanceGRPO (Xue et al. 2025): std = η·√Δ, score = −(x − (1−σ)·x̂0)/σ²,
          mean = x − (v − ½·η²·score)·Δ
cps       coefficients-preserving sampling (Wang & Yu 2025): std = σ_next·sin(aπ/2),
          mean = (1−σ_next)·x̂0 + √(σ_next² − std²)·x̂1
cps_mse   cps with the log-probability of its public code: −mean (x' − mean)², without the Gaussian's 1/(2·std²)
ode       Euler: mean = x − v·Δ, std = 0
"""

from __future__ import annotations

import math

import torch

KINDS = ("flow_sde", "dance_sde", "cps", "cps_mse", "ode")


def transition(kind: str, x, velocity, sigma: float, sigma_next: float, level: float, sigma_max: float | None = None):
    """Mean (shape of x) and standard deviation (a float) of the next state."""
    delta = sigma - sigma_next
    if kind == "ode":
        return x - velocity * delta, 0.0
    if kind == "flow_sde":
        ceiling = sigma if sigma < 1 or sigma_max is None else sigma_max
        if ceiling >= 1:
            raise ValueError("flow_sde at sigma = 1 needs sigma_max, the next point of the grid")
        s = level * math.sqrt(sigma / (1 - ceiling))
        drift = s * s / (2 * sigma)
        mean = x * (1 - drift * delta) - velocity * ((1 + drift * (1 - sigma)) * delta)
        return mean, s * math.sqrt(delta)
    if kind == "dance_sde":
        clean = x - sigma * velocity
        score = -(x - (1 - sigma) * clean) / sigma**2
        return x - (velocity - 0.5 * level**2 * score) * delta, level * math.sqrt(delta)
    if kind in ("cps", "cps_mse"):
        std = sigma_next * math.sin(level * math.pi / 2)
        clean, noise = x - sigma * velocity, x + (1 - sigma) * velocity
        return (1 - sigma_next) * clean + math.sqrt(sigma_next**2 - std**2) * noise, std
    raise ValueError(f"unknown sampler {kind!r}; choose from {', '.join(KINDS)}")


def velocity_slopes(kind: str, sigma: float, sigma_next: float, level: float, sigma_max: float) -> tuple[float, float]:
    """How much a stochastic transition feels the velocity: size of ∂ log p / ∂v for unit noise, and of ∂ mean / ∂v / std.

    They differ for `cps_mse` alone, whose log-probability is not the Gaussian's.
    """
    slope, std = transition(kind, 0.0, 1.0, sigma, sigma_next, level, sigma_max)
    return abs(slope) * (2 * std if kind == "cps_mse" else 1 / std), abs(slope) / std


def step(kind, x, velocity, sigma, sigma_next, level, noise=None, prev=None, sigma_max=None):
    """One transition from ``sigma`` to ``sigma_next`` (plain floats, 1 ≥ σ > σ_next ≥ 0).

    x, velocity: (B, …), computed in fp32 at least. ``level`` is a (flow_sde, cps) or η (dance_sde), unused by ode.
    Give ``noise`` (standard normal, shape of x) to sample, or ``prev`` to evaluate a transition taken earlier.
    Returns (prev, log_prob, mean, std): the next state, its log-density averaged over all latent dimensions (B,), the
    Gaussian's mean, and its standard deviation (a float). A noiseless transition has log_prob 0.
    """
    sigma, sigma_next = float(sigma), float(sigma_next)
    if not 1 >= sigma > sigma_next >= 0:
        raise ValueError(f"sigma must fall within [0, 1], got {sigma} to {sigma_next}")
    x, velocity = _at_least_fp32(x), _at_least_fp32(velocity)
    mean, std = transition(kind, x, velocity, sigma, sigma_next, level, None if sigma_max is None else float(sigma_max))
    if prev is None:
        if std == 0:
            prev = mean
        elif noise is None:
            raise ValueError(f"{kind} is stochastic: give noise to sample or prev to evaluate")
        else:
            prev = mean + std * noise
    return prev, log_density(kind, prev, mean, std), mean, std


def log_density(kind: str, prev, mean, std: float):
    """Log-density of ``prev`` under N(mean, std²), averaged over latent dimensions: (B,)."""
    if std == 0:
        return mean.new_zeros(mean.shape[0])
    squared_B = (_at_least_fp32(prev) - mean).square().flatten(1).mean(1)
    if kind == "cps_mse":
        return -squared_B
    return -squared_B / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi)


def clean_prediction(x, velocity, sigma: float):
    """x̂0 = x − σ·v, the data that the model expects from here (shape of x)."""
    return x - sigma * velocity


def _at_least_fp32(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
