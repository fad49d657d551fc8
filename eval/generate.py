"""Generate media for held-out prompts: ODE, fixed guidance, noise from (seed, slot, sample) alone; files plus an index."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from eval.media import quantise
from eval.video_writers import write_webp
from otca.config import EvalConfig
from otca.errors import InputError
from otca.files import named, write_atomic
from otca.models.base import Policy
from otca.prompts import evaluation_prompts
from otca.sampling import Batch, generator, make_batch, ode_plan, rollout
from otca.types import Prompt

INDEX = "prompts.jsonl"
"""File of a folder of media with the prompt of each, written last."""


@dataclass(frozen=True)
class Generated:
    """Some of an evaluation's samples."""

    media_BFCHW: torch.Tensor  # rounded to 8 bits, on the CPU
    prompts: list[Prompt]
    number_B: list[int]  # counted prompt by prompt, so that samples of a prompt are neighbours


def generated(policy: Policy, config: EvalConfig, seed: int, rank: int = 0, world: int = 1) -> Iterator[Generated]:
    """One process's share of an evaluation's samples, ``config.batch`` at a time.

    The same seed gives the same prompts and initial noise whatever the policy and however many processes. Every process
    samples as many, since networks in shards answer only when all of them ask; where the number is not a multiple of
    ``world``, the first samples are made twice. Raises InputError where two prompts have one id, by which rows and files go.
    """
    prompts_P = evaluation_prompts(config)
    twin, times = Counter(prompt.id for prompt in prompts_P).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"prompts {config.source}: the id {twin!r} comes {times} times; rows and files go by it, so number them anew"
        )
    batch = _batch(prompts_P, list(range(len(prompts_P))), config.samples_per_prompt, seed)
    parts = list(batch.parts(rank, world, config.batch))
    policy.encode_ahead(prompt.text for _, part in parts for prompt in part.prompts)
    for chosen, part in parts:
        with policy.sized(config.height, config.width):
            sampled = rollout(policy, part, ode_plan(config.steps, config.shift or policy.shift, config.batch))
        media_BFCHW = sampled.media_BFCHW.cpu()
        for prompt, finite in zip(part.prompts, torch.isfinite(media_BFCHW).flatten(1).all(1).tolist()):
            if not finite:
                raise InputError(f"media of prompt {prompt.id!r} hold NaN or Inf; see to the model's weights and precision")
        yield Generated(quantise(media_BFCHW), part.prompts, chosen)


def noise_seed(prompt: Prompt, slot: int, seed: int) -> int:
    """Seed of the ``torch.Generator`` that draws the initial noise of the first sample of an evaluation's prompt ``slot``."""
    return generator(_batch([prompt], [slot], 1, seed).initial_seed_B[0], "initial").initial_seed()


def _batch(prompts: list[Prompt], slots: list[int], samples_per_prompt: int, seed: int) -> Batch:
    return make_batch(prompts, slots, samples_per_prompt, ("eval", seed))


def generate(policy: Policy, config: EvalConfig, seed: int, folder: Path | None = None) -> tuple[torch.Tensor, list[Prompt]]:
    """All samples of an evaluation: media (B, F, 3, H, W) and one prompt a sample; written to ``folder`` if one is given."""
    parts = []
    if folder is not None:  # an earlier call's index would give the new media old prompts, were this one killed
        (folder / INDEX).unlink(missing_ok=True)
    for part in generated(policy, config, seed):
        if folder is not None:
            write_media(folder, part, config)
        parts.append(part)
    prompts = [prompt for part in parts for prompt in part.prompts]
    if folder is not None:
        write_index(folder, prompts, parts[0].media_BFCHW.shape[1], config.samples_per_prompt)
    return torch.cat([part.media_BFCHW for part in parts]), prompts


def write_media(folder: Path, part: Generated, config: EvalConfig) -> None:
    """``<prompt id>_<sample>.png`` (a lossless ``.webp`` for a video) for every sample."""
    folder.mkdir(parents=True, exist_ok=True)
    for media_FCHW, prompt, number in zip(part.media_BFCHW, part.prompts, part.number_B):
        path = folder / _file(prompt, number % config.samples_per_prompt, len(media_FCHW))
        if len(media_FCHW) == 1:
            with named(path):
                Image.fromarray((media_FCHW[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(path)
        else:
            write_webp(path, media_FCHW, config.fps)


def write_index(folder: Path, prompts: list[Prompt], frames: int, samples_per_prompt: int) -> None:
    """``prompts.jsonl``: file, id, prompt and spec of each sample in turn; `score` reads it."""
    lines = [
        json.dumps({"file": _file(p, i % samples_per_prompt, frames), "id": p.id, "prompt": p.text, "spec": p.spec})
        for i, p in enumerate(prompts)
    ]
    write_atomic(folder / INDEX, "\n".join(lines) + "\n")


def _file(prompt: Prompt, sample: int, frames: int) -> str:
    return f"{_safe(prompt.id)}_{sample}.{'png' if frames == 1 else 'webp'}"


def _safe(identifier: str) -> str:
    """What an id is called in file names: itself if short and of letters, digits, '-' and '_', else what is left, and a hash."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in identifier)[:80]
    return plain if plain == identifier else f"{plain}-{hashlib.sha256(identifier.encode()).hexdigest()[:8]}"
