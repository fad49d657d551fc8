"""The embedded image generator's training data and network (the training itself: `flow.py`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from otca.tasks import architecture
from otca.tasks.scenes import LATTICE, SIZE, captions, draw_scene, render, split_specs
from reproduce.pretrain.flow import Bank, draw_specs, stored_latents, tokenize

SKILL_SHARES = {"single_object": 1, "two_objects": 2, "counting": 2, "colors": 1, "position": 2, "color_attr": 2}
"""How often each skill is trained on, relatively: two objects are learned more slowly than one."""

GRID = SIZE // 8
"""Side of the latent grid (the VAE is 8× down)."""


def train_specs() -> list[dict]:
    """Specs of the training split, skill after skill."""
    return [spec for specs in split_specs("train").values() for spec in specs]


@torch.no_grad()
def image_bank(pipeline, folder: Path, count: int = 65536, seed: int = 0) -> Bank:
    """Packed latent means of ``count`` rendered training scenes, on the generator's lattice.

    Writes shift and scale into the VAE's config, so that (z − shift)·scale has mean 0 and standard deviation 1.
    """
    specs, vae = train_specs(), pipeline.vae
    rng = np.random.default_rng([seed, 41])

    def make(_: int, batch: int = 64):
        chosen = draw_specs(specs, SKILL_SHARES, rng, batch)
        image = torch.from_numpy(np.stack([render(draw_scene(specs[i], rng, LATTICE)) for i in chosen]))
        return vae.encode(image * 2 - 1).latent_dist.mode(), chosen

    latent, spec = stored_latents(folder / "latents.safetensors", count, make)
    shift, std = latent[:4096].float().mean(), latent[:4096].float().std()
    vae.register_to_config(shift_factor=float(shift), scaling_factor=float(1 / std))
    packed = pipeline._pack_latents(latent, len(latent), latent.shape[1], GRID, GRID)
    length = architecture.MAX_SEQUENCE_LENGTH
    wordings = [tokenize(pipeline.tokenizer, captions(one), length) for one in specs]
    return Bank(packed, spec, wordings, tokenize(pipeline.tokenizer, [""], length)[0], shift, std)


def image_network(pipeline):
    """Velocity of packed latents through a FluxPipeline's text encoders and transformer."""
    image_ids = pipeline._prepare_latent_image_ids(1, GRID // 2, GRID // 2, "cpu", torch.float32)
    text_ids = torch.zeros(architecture.MAX_SEQUENCE_LENGTH, 3)
    compiled = torch.compile(pipeline.transformer)  # a fifth faster on one core; needs a C++ compiler

    def velocity(noisy, sigma, ids):
        return compiled(
            hidden_states=noisy,
            timestep=sigma,
            pooled_projections=pipeline.text_encoder(ids).pooler_output,
            encoder_hidden_states=pipeline.text_encoder_2(ids)[0],
            img_ids=image_ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]

    return velocity
