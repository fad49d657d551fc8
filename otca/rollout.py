"""Sampling: P prompt slots × G samples through the policy, every sample with noise of its own seed."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from otca import samplers
from otca.config import SamplerConfig
from otca.memory import memory_named
from otca.models.base import Policy
from otca.schedules import StepPlan
from otca.types import Prompt, Trajectory


@dataclass(frozen=True)
class Batch:
    """What is to be sampled: one entry a sample. ``initial_seed_B`` differs from ``seed_B`` only with shared noise."""

    prompts: list[Prompt]
    group_B: torch.Tensor
    seed_B: list[int]
    initial_seed_B: list[int]


def sample_seed(*key: int | str) -> int:
    """A 63-bit seed from (run seed, iteration, slot, sample, …), the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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
    per_update = prompts // updates
    share = per_update // world
    return [update * per_update + rank * share + i for update in range(updates) for i in range(share)]


@torch.no_grad()
def rollout(
    policy: Policy,
    batch: Batch,
    sampler: SamplerConfig,
    sigma_S: torch.Tensor,
    plan: StepPlan,
    micro_batch: int,
    keep: frozenset[str] = frozenset(),
    seconds: dict[str, float] | None = None,
    on_media: Callable[[torch.Tensor, list[Prompt]], None] | None = None,
) -> Trajectory:
    """Sample every entry of the batch, ``micro_batch`` at a time; ``keep`` may name "velocity" and "mean".

    Noise depends on each sample's seed alone. ``seconds``, if given, gains the time spent in "sampling" and "decode".
    ``on_media`` is given the media of each micro-batch, and their prompts, as soon as they are decoded.
    """
    seconds = {} if seconds is None else seconds
    chunks, media = [], []
    for first in range(0, len(batch.prompts), micro_batch):
        rows = slice(first, first + micro_batch)
        started, size = time.perf_counter(), len(batch.prompts[rows])
        with memory_named(f"sampling {size} samples", f"micro_batch ({micro_batch})"):
            condition = condition_of(policy, batch.prompts, rows)
            chunks.append(_trajectories(policy, batch, rows, condition, sampler, sigma_S, plan, keep))
        sampled = time.perf_counter()
        with memory_named(f"decoding {size} samples", f"micro_batch ({micro_batch}) or set policy.vae_slicing"):
            media.append(policy.decode(chunks[-1]["latents"][-1]))
        seconds["sampling"] = seconds.get("sampling", 0.0) + sampled - started
        seconds["decode"] = seconds.get("decode", 0.0) + time.perf_counter() - sampled
        if on_media is not None:
            on_media(media[-1], batch.prompts[rows])
    stacked = {name: torch.cat([c[name] for c in chunks], dim=1) for name in chunks[0] if name != "std"}
    return Trajectory(
        latents_SB=stacked["latents"],
        std_T=torch.tensor(chunks[0]["std"], dtype=torch.float64),
        log_prob_TB=stacked["log_prob"],
        sigma_S=sigma_S,
        trained_T=plan.trained_T,
        media_BFCHW=torch.cat(media),
        prompts=batch.prompts,
        group_B=batch.group_B,
        seed_B=batch.seed_B,
        velocity_TB=stacked.get("velocity"),
        mean_TB=stacked.get("mean"),
    )


def _trajectories(policy, batch, rows, condition, sampler, sigma_S, plan, keep) -> dict:
    """All T transitions of one micro-batch, stacked over time (axis 0)."""
    x = policy.noise([initial_generator(seed) for seed in batch.initial_seed_B[rows]])
    step_noise = [_generator(seed, "steps") for seed in batch.seed_B[rows]]
    out: dict[str, list] = {"latents": [x], "log_prob": [], "std": []} | {name: [] for name in keep}
    for t in range(len(sigma_S) - 1):
        noise = policy.noise(step_noise)  # drawn at every step, so that the choice of stochastic steps moves no other draw
        velocity = velocity_at(policy, x, t, sigma_S, condition)
        x, log_prob, mean, std = transition_at(sampler, plan, t, sigma_S, x, velocity, noise=noise)
        out["latents"].append(x)
        out["log_prob"].append(log_prob)
        out["std"].append(std)
        for name, value in (("velocity", velocity), ("mean", mean)):
            if name in keep:
                out[name].append(value)
    return {name: value if name == "std" else torch.stack(value) for name, value in out.items()}


def initial_generator(seed: int) -> torch.Generator:
    """What draws a sample's initial noise, from its entry in ``initial_seed_B``."""
    return _generator(seed, "initial")


def _generator(seed: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(sample_seed(seed, purpose))


def noised_at(policy: Policy, clean, seed_B: list[int], t: int, sigma_S: torch.Tensor):
    """Clean latents noised to level t, x = (1 − σ)·clean + σ·noise, each sample with noise of its own seed and level."""
    noise = policy.noise([_generator(seed, f"forward {t}") for seed in seed_B])
    sigma = float(sigma_S[t])
    return (1 - sigma) * clean + sigma * noise


def continued_from(policy: Policy, sampled: Trajectory, sampler: SamplerConfig, state: int, draw: int, rows: slice, condition):
    """Final latents (B, …) when sampling goes on from a state with fresh noise, under the same plan of stochastic steps.

    The noise of a step depends on the sample's seed, ``draw`` and the step alone, so continuations of neighbouring states
    share it. The first step uses the velocity that the rollout kept.
    """
    plan = StepPlan(sampled.std_T > 0, sampled.trained_T)
    x, velocity = sampled.latents_SB[state, rows], sampled.velocity_TB[state, rows]
    for t in range(state, len(sampled.sigma_S) - 1):
        if t > state:
            velocity = velocity_at(policy, x, t, sampled.sigma_S, condition)
        noise = policy.noise([_generator(seed, f"continuation {draw} step {t}") for seed in sampled.seed_B[rows]])
        x = transition_at(sampler, plan, t, sampled.sigma_S, x, velocity, noise=noise)[0]
    return x


def condition_of(policy: Policy, prompts: list[Prompt], rows: slice | torch.Tensor):
    """The encoded prompts of some samples; a whole batch of them at once need not fit in memory."""
    chosen = prompts[rows] if isinstance(rows, slice) else [prompts[i] for i in rows.tolist()]
    return policy.encode([p.text for p in chosen])


def velocity_at(policy: Policy, x, t: int, sigma_S: torch.Tensor, condition) -> torch.Tensor:
    """The policy's velocity at step t; rollout and update both come through here."""
    sigma_B = torch.full((len(x),), float(sigma_S[t]), dtype=torch.float32, device=x.device)
    return policy.velocity(x, sigma_B, condition)


def transition_at(sampler: SamplerConfig, plan: StepPlan, t: int, sigma_S, x, velocity, noise=None, prev=None):
    """`samplers.step` for step t of a plan: the configured kernel where it is stochastic, the ODE elsewhere."""
    kind = sampler.kind if bool(plan.stochastic_T[t]) else "ode"
    return samplers.step(
        kind, x, velocity, sigma_S[t], sigma_S[t + 1], sampler.level, noise=noise, prev=prev, sigma_max=sigma_S[1]
    )
