"""The embedded video generator's training data and network (the training itself: `flow.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from otca.tasks.scenes import LATTICE
from otca.tasks.video_architecture import MAX_SEQUENCE_LENGTH
from otca.tasks.video_scenes import captions, draw_clip, render_clip, split_specs
from reproduce.pretrain.flow import Bank, draw_specs, stored_latents, tokenize

SKILL_SHARES = {"direction": 2, "speed": 2, "stop_and_go": 1, "turning": 2, "bouncing": 1, "scale": 1, "two_objects": 3}
"""How often each skill is trained on, relatively."""


def train_specs() -> list[dict]:
    """Specs of the training split, skill after skill."""
    return [spec for specs in split_specs("train").values() for spec in specs]


@torch.no_grad()
def video_bank(pipeline, folder: Path, count: int = 16384, seed: int = 0) -> Bank:
    """Latent means (C, 3, 8, 8) of ``count`` rendered training clips, on the generator's lattice.

    Writes mean and standard deviation of each channel into the VAE's config.
    """
    specs, vae = train_specs(), pipeline.vae

    def make(index: int, batch: int = 64):
        rng = np.random.default_rng([seed, 43, index])
        chosen = draw_specs(specs, SKILL_SHARES, rng, batch)
        clip = np.stack([render_clip(draw_clip(specs[i], rng, LATTICE)) for i in chosen])
        clip_BCFHW = torch.from_numpy(clip).transpose(1, 2) * 2 - 1
        return torch.cat([vae.encode(part).latent_dist.mode() for part in clip_BCFHW.split(8)]), chosen

    latent, spec = stored_latents(folder / "latents.safetensors", count, make)
    sample = latent[:4096].float()
    mean, std = sample.mean((0, 2, 3, 4)), sample.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    wordings = [tokenize(pipeline.tokenizer, captions(one), MAX_SEQUENCE_LENGTH) for one in specs]
    empty = tokenize(pipeline.tokenizer, [""], MAX_SEQUENCE_LENGTH)[0]
    return Bank(latent, spec, wordings, empty, mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1))


def video_network(pipeline):
    """Velocity of latents (B, C, F, H, W) through a WanPipeline's text encoder and transformer."""
    compiled = torch.compile(pipeline.transformer)
    pad = pipeline.tokenizer.pad_token_id

    def velocity(noisy, sigma, ids):
        seen = (ids != pad).to(noisy.dtype)
        text = pipeline.text_encoder(ids, seen)[0] * seen[..., None]  # WanPipeline zeroes what follows the text
        return compiled(hidden_states=noisy, timestep=sigma * 1000, encoder_hidden_states=text, return_dict=False)[0]

    return velocity
