"""Noise levels of a trajectory, and which of its transitions are stochastic and trained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

SELECTIONS = ("all", "random_fraction", "first_k", "window", "ode")


def sigmas_S(steps: int, shift: float = 1.0) -> torch.Tensor:
    """Noise levels from 1 to 0: float64 (steps + 1,), linear, then shifted: σ ← s·σ / (1 + (s−1)·σ)."""
    if steps < 2:
        raise ValueError(f"sampler.steps is {steps}; a trajectory needs at least 2 steps")
    if shift <= 0:
        raise ValueError(f"sampler.shift is {shift}; it must be positive (1 = linear)")
    sigma = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * sigma / (1 + (shift - 1) * sigma)


@dataclass(frozen=True)
class StepPlan:
    """stochastic_T: (T,) bool, transitions sampled with noise; trained_T: (T,) bool, a subset of them that is trained."""

    stochastic_T: torch.Tensor
    trained_T: torch.Tensor


def plan_steps(
    selection: str, steps: int, iteration: int, rng: np.random.Generator, fraction: float, count: int, stride: int
) -> StepPlan:
    """Choose transitions for one iteration. The last transition is never trained and always noiseless.

    ``all``: every one but the last. ``random_fraction``: int(fraction·(T−1)) of them drawn afresh (DanceGRPO; drawn per
    iteration here, per sample there), the others stay stochastic. ``first_k``: the first ``count``, ODE after
    (Flow-GRPO-Fast). ``window``: ``count`` neighbours that move on by one every ``stride`` iterations and stop at the
    end (MixGRPO), ODE elsewhere. ``ode``: no noise, and every noise level trained, the last too (DiffusionNFT).
    """
    last = steps - 1
    all_but_last = torch.arange(steps) < last
    if selection == "ode":
        return StepPlan(torch.zeros(steps, dtype=torch.bool), torch.ones(steps, dtype=torch.bool))
    if selection == "all":
        return StepPlan(all_but_last, all_but_last.clone())
    if selection == "random_fraction":
        number = int(fraction * last)
        if number < 1:
            raise ValueError(f"step_selection.fraction is {fraction}: of {last} steps it selects none; raise it")
        trained = torch.zeros(steps, dtype=torch.bool)
        trained[torch.from_numpy(rng.choice(last, number, replace=False))] = True
        return StepPlan(all_but_last, trained)
    if not 1 <= count <= last:
        raise ValueError(f"step_selection.count is {count}; with {steps} steps it must lie in 1..{last}")
    if selection == "first_k":
        first = 0
    elif selection == "window":
        first = min(iteration // stride, last - count)
    else:
        raise ValueError(f"unknown step_selection.kind {selection!r}; choose from {', '.join(SELECTIONS)}")
    window = (torch.arange(steps) >= first) & (torch.arange(steps) < first + count)
    return StepPlan(window, window.clone())
