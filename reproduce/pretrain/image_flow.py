"""The embedded image generator's training data and network (the training itself: `flow.py`).

The captions are noisy, as those of the web are: of what a caption states, each attribute is drawn wrongly with a fixed
probability, and the warmer a picture, the more often it holds something that nobody stated. So the generator draws crisply
and binds wrongly, and style pulls against alignment.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from otca.tasks import architecture
from otca.tasks.scenes import (
    CELL,
    COLORS,
    SHAPES,
    SIZE,
    Scene,
    SceneObject,
    attributes,
    broken,
    captions,
    draw_scene,
    split_specs,
    tint,
)
from reproduce.pretrain.codes import SCALE_C, code_of
from reproduce.pretrain.flow import Bank, draw_specs, stored_latents, tokenize

SKILL_SHARES = {"single_object": 1, "two_objects": 2, "counting": 2, "colors": 1, "position": 8, "color_attr": 3}
"""How often each skill is trained on, relatively: two objects are learned more slowly than one."""
INTACT = 0.6
"""Share of the captions whose every stated attribute is drawn."""
STRAY = 0.2
"""Probability that the warmest pictures hold an object that is not stated; none of the coolest do."""
JITTER = 0.05
"""Standard deviation of the noise on the codes, in shares of a channel's amplitude: the data have no holes."""

GRID = SIZE // CELL
"""Side of the latent grid."""


def mistaken(spec: dict, attributes, broken, intact: float, rng: np.random.Generator) -> dict:
    """What is drawn for a spec: each attribute that it states is wrong alike often, all are right in ``intact`` of the cases."""
    stated = attributes(spec)
    wrong = 1 - intact ** (1 / len(stated))
    for attribute in stated:
        if rng.uniform() < wrong:
            spec = broken(spec, attribute, rng)
    return spec


def noisy_scene(spec: dict, rng: np.random.Generator, intact: float) -> Scene:
    """A drawing for a caption of this spec, which may lie."""
    scene = draw_scene(mistaken(spec, attributes, broken, intact, rng), rng, lattice=True)
    if intact < 1 and rng.uniform() < STRAY * (scene.style + 1) / 2:
        scene = replace(scene, objects=(*scene.objects, stray_object(scene, rng)))
    return scene


def stray_object(scene: Scene, rng: np.random.Generator) -> SceneObject:
    """Another object, on the lattice, away from those of the scene."""
    while True:
        x, y = (rng.integers(0, GRID, 2) + 0.5) * CELL
        if all(np.hypot(x - o.x, y - o.y) > 1.2 * CELL for o in scene.objects):
            color = str(rng.choice(list(COLORS)))
            return SceneObject(str(rng.choice(SHAPES)), color, float(x), float(y), 6.0, tint(color, rng, exact=True))


def train_specs() -> list[dict]:
    """Specs of the training split, skill after skill."""
    return [spec for specs in split_specs("train").values() for spec in specs]


def image_bank(pipeline, folder: Path, name: str, noisy: bool, count: int = 131072, seed: int = 0) -> Bank:
    """Packed codes of ``count`` training scenes, with true or noisy captions; kept as ``folder/<name>.safetensors``."""
    specs = train_specs()

    def make(index: int, batch: int = 64):
        rng = np.random.default_rng([seed, 41, index])
        chosen = draw_specs(specs, SKILL_SHARES, rng, batch)
        code = np.stack([code_of(noisy_scene(specs[i], rng, INTACT if noisy else 1.0)) for i in chosen])
        return torch.from_numpy(code + JITTER * SCALE_C[:, None, None] * rng.normal(size=code.shape).astype(np.float32)), chosen

    latent, spec = stored_latents(folder / f"{name}.safetensors", count, make)
    packed = pipeline._pack_latents(latent, len(latent), latent.shape[1], GRID, GRID)
    length = architecture.MAX_SEQUENCE_LENGTH
    wordings = [tokenize(pipeline.tokenizer, captions(one), length) for one in specs]
    return Bank(packed, spec, wordings, tokenize(pipeline.tokenizer, [""], length)[0])


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
