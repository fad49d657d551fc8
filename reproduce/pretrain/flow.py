"""Pre-train the embedded rectified-flow transformer and its text encoders on latents of rendered scenes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from otca.embedded import architecture
from otca.embedded.scenes import LATTICE, SIZE, SKILLS, captions, draw_scene, render, split_specs
from reproduce.pretrain.loop import train

SHIFT = 3.0
"""Time shift of the training noise levels; without it the few, large objects are decided where almost nothing is trained."""

CAPTION_DROPOUT = 0.1
"""Share of samples trained without a caption, so that classifier-free guidance is possible."""

GRID = SIZE // 8
"""Side of the latent grid (the VAE is 8× down)."""


def train_specs() -> list[dict]:
    """Specs of the training split; the bank draws them skill by skill, evenly."""
    return [spec for specs in split_specs("train").values() for spec in specs]


@torch.no_grad()
def latent_bank(vae, folder: Path, count: int, seed: int, batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent means of ``count`` rendered training scenes: (count, C, GRID, GRID) fp16, and the index of each one's spec.

    Kept in ``folder/latents.safetensors``, so that a resumed run trains on the same bank.
    """
    path = folder / "latents.safetensors"
    if path.exists():
        bank = load_file(path)
        return bank["latent"], bank["spec"]
    specs = train_specs()
    by_skill = {skill: [i for i, s in enumerate(specs) if s["skill"] == skill] for skill in SKILLS}
    rng = np.random.default_rng([seed, 41])
    chosen, latents = [], []
    for _ in range(0, count, batch):
        index = [int(rng.choice(by_skill[SKILLS[rng.integers(len(SKILLS))]])) for _ in range(batch)]
        image = torch.from_numpy(np.stack([render(draw_scene(specs[i], rng, LATTICE)) for i in index])) * 2 - 1
        latents.append(vae.encode(image).latent_dist.mode().half())
        chosen += index
    bank = {"latent": torch.cat(latents), "spec": torch.tensor(chosen)}
    aside = path.with_suffix(".tmp")
    save_file(bank, aside)
    os.replace(aside, path)
    return bank["latent"], bank["spec"]


def set_latent_scale(vae, latent: torch.Tensor) -> None:
    """Write shift and scale into the VAE's config so that (z − shift)·scale has mean 0 and standard deviation 1."""
    sample = latent[:4096].float()
    vae.register_to_config(shift_factor=float(sample.mean()), scaling_factor=float(1 / sample.std()))


def pretrain_flow(
    vae, folder: Path, steps: int, decay_from: int, batch: int = 64, learning_rate: float = 2e-3, bank: int = 49152, seed: int = 0
):
    """Returns a complete FluxPipeline around the trained transformer and text encoders; resumable."""
    folder.mkdir(parents=True, exist_ok=True)
    latent, spec_index = latent_bank(vae, folder, bank, seed)
    set_latent_scale(vae, latent)
    torch.manual_seed(seed + 1)
    pipeline = architecture.build_pipeline()
    pipeline.register_modules(vae=vae)
    wordings = [captions(spec) for spec in train_specs()]
    tokens, empty = [_tokenize(pipeline, texts) for texts in wordings], _tokenize(pipeline, [""])[0]
    image_ids = pipeline._prepare_latent_image_ids(1, GRID // 2, GRID // 2, "cpu", torch.float32)
    text_ids = torch.zeros(architecture.MAX_SEQUENCE_LENGTH, 3)
    network = torch.compile(pipeline.transformer)  # a fifth faster on one core; needs a C++ compiler
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor

    def loss_at(step, rng, generator):
        pick = torch.from_numpy(rng.integers(0, len(latent), batch))
        x_BCHW = (latent[pick].float() - shift) * scale
        data = pipeline._pack_latents(x_BCHW, batch, x_BCHW.shape[1], GRID, GRID)
        rows = [tokens[i][rng.integers(len(tokens[i]))] for i in spec_index[pick].tolist()]
        rows = [empty if rng.random() < CAPTION_DROPOUT else row for row in rows]
        level = torch.sigmoid(torch.randn(batch, generator=generator))  # logit-normal, as SD3
        sigma = SHIFT * level / (1 + (SHIFT - 1) * level)
        noise = torch.randn(data.shape, generator=generator)
        mixed = (1 - sigma)[:, None, None] * data + sigma[:, None, None] * noise
        ids = torch.stack(rows)
        velocity = network(
            hidden_states=mixed,
            timestep=sigma,
            pooled_projections=pipeline.text_encoder(ids).pooler_output,
            encoder_hidden_states=pipeline.text_encoder_2(ids)[0],
            img_ids=image_ids,
            txt_ids=text_ids,
            return_dict=False,
        )[0]
        return (velocity - (noise - data)).square().mean()

    modules = {"transformer": pipeline.transformer, "clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2}
    train(
        "flow",
        modules,
        loss_at,
        steps,
        learning_rate,
        folder,
        seed=seed,
        ema_decay=0.999,
        warmup=400,
        save_every=500,
        decay_from=decay_from,
    )
    return pipeline


def _tokenize(pipeline, texts: list[str]) -> torch.Tensor:
    length = architecture.MAX_SEQUENCE_LENGTH
    return pipeline.tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
