"""Generate media for held-out prompts: ODE, fixed guidance, noise from (seed, slot, sample) alone; files plus an index."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from eval.media import quantise
from eval.videos import write_webp
from otca.config import EvalConfig, SamplerConfig
from otca.files import write_atomic
from otca.policies.base import Policy
from otca.prompts import load_prompts
from otca.rollout import make_batch, rollout
from otca.schedules import StepPlan, sigmas_S
from otca.types import Prompt


def generate(policy: Policy, config: EvalConfig, seed: int, folder: Path | None = None) -> tuple[torch.Tensor, list[Prompt]]:
    """Media (B, F, 3, H, W), rounded to 8 bits, and one prompt a sample; written to ``folder`` if one is given.

    The same seed gives the same prompts and initial noise whatever the policy. Samples of a prompt are neighbours.
    """
    prompts_P = load_prompts(config.source, config.prompts)
    batch = make_batch(prompts_P, list(range(len(prompts_P))), config.samples_per_prompt, ("eval", seed))
    policy.encode_ahead(p.text for p in prompts_P)
    never = torch.zeros(config.steps, dtype=torch.bool)
    sampled = rollout(
        policy,
        batch,
        SamplerConfig(steps=config.steps),
        sigmas_S(config.steps, config.shift or policy.shift),
        StepPlan(never, never),
        config.batch,
    )
    media_BFCHW = quantise(sampled.media_BFCHW.cpu())
    if folder is not None:
        write_media(folder, media_BFCHW, batch.prompts, config.samples_per_prompt)
    return media_BFCHW, batch.prompts


def write_media(folder: Path, media_BFCHW: torch.Tensor, prompts: list[Prompt], samples_per_prompt: int) -> None:
    """``<prompt id>_<sample>.png`` (a lossless ``.webp`` for a video) for every sample, then ``prompts.jsonl``.

    The list has file, id, prompt and spec of each sample; `score` reads it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, (media_FCHW, prompt) in enumerate(zip(media_BFCHW, prompts)):
        name = f"{_safe(prompt.id)}_{index % samples_per_prompt}"
        if len(media_FCHW) == 1:
            name += ".png"
            Image.fromarray((media_FCHW[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()).save(folder / name)
        else:
            name += ".webp"
            write_webp(folder / name, media_FCHW)
        lines.append(json.dumps({"file": name, "id": prompt.id, "prompt": prompt.text, "spec": prompt.spec}))
    write_atomic(folder / "prompts.jsonl", "\n".join(lines) + "\n")


def _safe(identifier: str) -> str:
    """File names come from ids, with anything but letters, digits, '-' and '_' replaced."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in identifier)[:80]
