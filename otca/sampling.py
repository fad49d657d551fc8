"""Sampling: noise levels, the transition kernels of rectified flow, and the rollout of P prompt slots × G samples.

Rectified flow: x_σ = (1−σ)·x_data + σ·noise, velocity v = noise − x_data, so x̂0 = x − σ·v and x̂1 = x + (1−σ)·v.
σ falls; Δ = σ − σ_next > 0. Every kernel is a Gaussian N(mean, std²) for the next state:

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

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from otca.config import SamplerConfig, StepSelectionConfig, TrainConfig
from otca.errors import InputError, memory_named
from otca.types import Needs, Prompt, Trajectory

if TYPE_CHECKING:
    from otca.models.base import Policy

# ------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Plan:
    """How trajectories are drawn and which of their transitions are trained.

    sigma_S: (S,) float64 noise levels from 1 to 0; stochastic_T: (T,) bool, transitions drawn with the sampler's noise (the
    others by ODE); trained_T: (T,) bool; micro_batch: samples in one forward pass.
    """

    sampler: SamplerConfig
    sigma_S: torch.Tensor
    stochastic_T: torch.Tensor
    trained_T: torch.Tensor
    micro_batch: int


def plan_of(config: TrainConfig, shift: float, micro_batch: int, iteration: int = 0, selection: str = "") -> Plan:
    """The plan of an iteration; ``shift`` is the policy's own, ``selection`` replaces the config's kind of step selection."""
    chosen, steps = config.step_selection, config.sampler.steps
    chosen = replace(chosen, kind=selection) if selection else chosen
    masks = select_steps(chosen, steps, iteration, np.random.default_rng([config.seed, iteration, 11]))
    return Plan(config.sampler, sigmas_S(steps, config.sampler.shift or shift), *masks, micro_batch)


def ode_plan(steps: int, shift: float, micro_batch: int) -> Plan:
    """Deterministic sampling, for evaluation."""
    never = torch.zeros(steps, dtype=torch.bool)
    return Plan(SamplerConfig(steps=steps), sigmas_S(steps, shift), never, never, micro_batch)


def sigmas_S(steps: int, shift: float = 1.0) -> torch.Tensor:
    """Noise levels from 1 to 0: float64 (steps + 1,), linear, then shifted: σ ← s·σ / (1 + (s−1)·σ)."""
    sigma = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * sigma / (1 + (shift - 1) * sigma)


def select_steps(
    chosen: StepSelectionConfig, steps: int, iteration: int, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (T,) of the stochastic and of the trained transitions. The last one is noiseless and not trained.

    ``all``: every one but the last. ``random_fraction``: int(fraction·(T−1)) of them drawn afresh (DanceGRPO; drawn per
    iteration here, per sample there), the others stay stochastic. ``first_k``: the first ``count``, ODE after
    (Flow-GRPO-Fast). ``window``: ``count`` neighbours that move on by one every ``stride`` iterations and stop at the
    end (MixGRPO), ODE elsewhere. ``ode``: no noise, and every noise level trained, the last too (DiffusionNFT).
    """
    last, step_T = steps - 1, torch.arange(steps)
    if chosen.kind == "ode":
        return step_T < 0, step_T >= 0
    if chosen.kind == "all":
        return step_T < last, step_T < last
    if chosen.kind == "random_fraction":
        number = int(chosen.fraction * last)
        if number < 1:
            raise InputError(f"step_selection.fraction is {chosen.fraction}: of {last} steps it selects none; raise it")
        return step_T < last, torch.isin(step_T, torch.from_numpy(rng.choice(last, number, replace=False)))
    if chosen.count > last:
        raise InputError(f"step_selection.count is {chosen.count}; with {steps} steps it must lie in 1..{last}")
    first = 0 if chosen.kind == "first_k" else min(iteration // chosen.stride, last - chosen.count)
    window = (step_T >= first) & (step_T < first + chosen.count)
    return window, window


# ---------------------------------------------------------------------------------------------------------- kernels


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
    if kind not in ("cps", "cps_mse"):
        raise ValueError(f"unknown sampler {kind!r}; choose from flow_sde, dance_sde, cps, cps_mse, ode")
    std = sigma_next * math.sin(level * math.pi / 2)
    clean, noise = x - sigma * velocity, x + (1 - sigma) * velocity
    return (1 - sigma_next) * clean + math.sqrt(sigma_next**2 - std**2) * noise, std


def velocity_slopes(kind: str, sigma: float, sigma_next: float, level: float, sigma_max: float) -> tuple[float, float]:
    """Size of ∂ log p / ∂v for unit noise, and of ∂ mean / ∂v / std; they differ for `cps_mse` alone, which is no Gaussian."""
    slope, std = transition(kind, 0.0, 1.0, sigma, sigma_next, level, sigma_max)
    return abs(slope) * (2 * std if kind == "cps_mse" else 1 / std), abs(slope) / std


def step(kind, x, velocity, sigma, sigma_next, level, noise=None, prev=None, sigma_max=None):
    """One transition from ``sigma`` to ``sigma_next`` (1 ≥ σ > σ_next ≥ 0).

    x, velocity: (B, …), computed in fp32 at least. ``level`` is a (flow_sde, cps) or η (dance_sde), unused by ode.
    Give ``noise`` (standard normal, shape of x) to sample, or ``prev`` to evaluate a transition taken earlier.
    Returns (prev, log_prob, mean, std): the next state, its log-density averaged over all latent dimensions (B,), the
    Gaussian's mean, and its standard deviation (a float). A noiseless transition has log_prob 0.
    """
    x, velocity = at_least_fp32(x), at_least_fp32(velocity)
    levels = (float(sigma), float(sigma_next), level, None if sigma_max is None else float(sigma_max))
    mean, std = transition(kind, x, velocity, *levels)
    if std == 0:
        return mean if prev is None else prev, mean.new_zeros(len(mean)), mean, std
    if prev is None:
        prev = mean + std * noise
    squared_B = (at_least_fp32(prev) - mean).square().flatten(1).mean(1)
    if kind == "cps_mse":
        return prev, -squared_B, mean, std
    return prev, -squared_B / (2 * std**2) - math.log(std) - 0.5 * math.log(2 * math.pi), mean, std


def clean_prediction(x, velocity, sigma: float):
    """x̂0 = x − σ·v, the data that the model expects from here (shape of x)."""
    return x - sigma * velocity


def at_least_fp32(value: torch.Tensor) -> torch.Tensor:
    """Half precision made fp32."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


# ---------------------------------------------------------------------------------------------------------- rollout


@dataclass(frozen=True)
class Batch:
    """What is to be sampled: one entry a sample. ``initial_seed_B`` differs from ``seed_B`` only with shared noise."""

    prompts: list[Prompt]
    group_B: torch.Tensor
    seed_B: list[int]
    initial_seed_B: list[int]

    def parts(self, rank: int, world: int, size: int) -> Iterator[tuple[list[int], Batch]]:
        """A process's share, ``size`` samples at a time, and their numbers: all get as many, the first ones twice if need be."""
        count = len(self.prompts)
        share = [i % count for i in range(rank, -(-count // world) * world, world)]
        for first in range(0, len(share), size):
            chosen = share[first : first + size]
            prompts, *seeds = ([values[i] for i in chosen] for values in (self.prompts, self.seed_B, self.initial_seed_B))
            yield chosen, Batch(prompts, self.group_B[chosen], *seeds)


def micro_batches(count: int, size: int) -> list[slice]:
    """Slices of at most ``size`` samples that cover ``count``."""
    return [slice(first, first + size) for first in range(0, count, size)]


def sample_seed(*key: int | str) -> int:
    """A 63-bit seed from (run seed, iteration, slot, sample, …), the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") >> 1


def make_batch(prompts_P: list[Prompt], slots_P: list[int], group_size: int, key: tuple, shared_noise: bool = False) -> Batch:
    """G samples of each prompt slot; slots are numbers within the iteration, so equal texts stay separate groups."""
    seed_B = [sample_seed(*key, slot, g) for slot in slots_P for g in range(group_size)]
    first = [sample_seed(*key, slot, 0) for slot in slots_P for _ in range(group_size)]
    return Batch(
        prompts=[p for p in prompts_P for _ in range(group_size)],
        group_B=torch.tensor(slots_P).repeat_interleave(group_size),
        seed_B=seed_B,
        initial_seed_B=first if shared_noise else seed_B,
    )


def slots_of(rank: int, world: int, prompts: int, updates: int) -> list[int]:
    """Prompt slots of one process: an equal, contiguous share of every update, so that groups never straddle processes."""
    return torch.arange(prompts).view(updates, world, -1)[:, rank].flatten().tolist()


@torch.no_grad()
def rollout(
    policy: Policy,
    batch: Batch,
    plan: Plan,
    keep: Needs = Needs.NOTHING,
    seconds: dict[str, float] | None = None,
    on_media: Callable[[torch.Tensor, list[Prompt]], None] | None = None,
) -> Trajectory:
    """Sample every entry of the batch, a micro-batch at a time; ``keep``: what a method needs of it.

    Noise depends on each sample's seed alone. ``seconds`` gains the time of "sampling" and "decode"; ``on_media`` is given the
    media of each micro-batch, and their prompts, as soon as they are decoded.
    """
    chunks, media, seconds = [], [], {} if seconds is None else seconds
    for rows in micro_batches(len(batch.prompts), plan.micro_batch):
        size, smaller = len(batch.prompts[rows]), f"micro_batch ({plan.micro_batch})"
        with timed(seconds, "sampling"), memory_named(f"sampling {size} samples", smaller):
            chunks.append(_trajectories(policy, batch, rows, plan, keep))
        with timed(seconds, "decode"), memory_named(f"decoding {size} samples", f"{smaller} or set policy.vae_slicing"):
            media.append(policy.decode(chunks[-1]["latents"][-1]))
        if on_media is not None:
            on_media(media[-1], batch.prompts[rows])
    stacked = {name: torch.cat([c[name] for c in chunks], dim=1) for name in chunks[0] if name != "std"}
    return Trajectory(
        latents_SB=stacked["latents"],
        std_T=torch.tensor(chunks[0]["std"], dtype=torch.float64),
        log_prob_TB=stacked["log_prob"],
        sigma_S=plan.sigma_S,
        trained_T=plan.trained_T,
        media_BFCHW=torch.cat(media),
        prompts=batch.prompts,
        group_B=batch.group_B,
        seed_B=batch.seed_B,
        velocity_TB=stacked.get("velocity"),
        mean_TB=stacked.get("mean"),
        hidden_TBD=stacked.get("hidden"),
    )


@contextmanager
def timed(seconds: dict[str, float], name: str):
    """Add the seconds of a with-block to ``seconds[name]``."""
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def _trajectories(policy: Policy, batch: Batch, rows: slice, plan: Plan, keep: Needs) -> dict:
    """All T transitions of one micro-batch: values by name, stacked over time (axis 0)."""
    condition = condition_of(policy, batch.prompts, rows)
    x = policy.noise([generator(seed, "initial") for seed in batch.initial_seed_B[rows]])
    step_noise = [generator(seed, "steps") for seed in batch.seed_B[rows]]
    kept = [name for name, flag in (("velocity", Needs.VELOCITY), ("mean", Needs.MEAN)) if flag in keep]
    out: dict[str, list] = {"latents": [x], "log_prob": [], "std": []} | {name: [] for name in kept}
    with policy.hidden_states() if Needs.VALUE_HEAD in keep else nullcontext([]) as hidden:
        for t in range(len(plan.sigma_S) - 1):
            noise = policy.noise(step_noise)  # drawn at every step, so that the choice of stochastic steps moves no other draw
            velocity = velocity_at(policy, x, t, plan.sigma_S, condition)
            x, log_prob, mean, std = transition_at(plan, t, x, velocity, noise=noise)
            values = {"latents": x, "log_prob": log_prob, "std": std, "velocity": velocity, "mean": mean}
            for name in out:
                out[name].append(values[name])
    out |= {"hidden": [rows_BD[-len(x) :] for rows_BD in hidden]} if hidden else {}
    return {name: value if name == "std" else torch.stack(value) for name, value in out.items()}


def generator(seed: int, purpose: str) -> torch.Generator:
    """What draws a sample's noise: "initial" (by ``initial_seed_B``), of its "steps", or for another purpose."""
    return torch.Generator().manual_seed(sample_seed(seed, purpose))


def condition_of(policy: Policy, prompts: list[Prompt], rows: slice | torch.Tensor):
    """The encoded prompts of some samples; a whole batch of them at once need not fit in memory."""
    chosen = prompts[rows] if isinstance(rows, slice) else [prompts[i] for i in rows.tolist()]
    return policy.encode([p.text for p in chosen])


def velocity_at(policy: Policy, x, t: int, sigma_S: torch.Tensor, condition) -> torch.Tensor:
    """The policy's velocity at step t; rollout and update both come through here."""
    sigma_B = torch.full((len(x),), float(sigma_S[t]), dtype=torch.float32, device=x.device)
    return policy.velocity(x, sigma_B, condition)


def transition_at(plan: Plan, t: int, x, velocity, noise=None, prev=None):
    """`step` for step t of a plan: the sampler's kernel where it is stochastic, the ODE elsewhere."""
    kind, sigma_S = plan.sampler.kind if bool(plan.stochastic_T[t]) else "ode", plan.sigma_S
    return step(kind, x, velocity, sigma_S[t], sigma_S[t + 1], plan.sampler.level, noise=noise, prev=prev, sigma_max=sigma_S[1])
