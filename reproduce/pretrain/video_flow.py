"""The embedded video generator's training data and network (the training itself: `flow.py`).

The captions are noisy as those of the images are (`image_flow.py`), less so where they state two objects, and the steadier a
clip, the more often it shows something else than stated: manner pulls against text alignment.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from otca.tasks import architecture
from otca.tasks.video_scenes import Clip, attributes, broken, captions, draw_clip, split_specs
from reproduce.pretrain.codes import VIDEO_SCALE_C3, clip_code_of
from reproduce.pretrain.flow import Bank, draw_specs, stored_latents, tokenize
from reproduce.pretrain.image_flow import JITTER, STRAY, mistaken

SKILL_SHARES = {"direction": 1, "speed": 1, "turning": 2, "bouncing": 1, "two_objects": 4, "relation": 8}
"""How often each skill is trained on, relatively: two objects are learned more slowly than one."""
INTACT = {1: 0.4, 2: 0.72}
"""By the number of objects, the share of noisy captions whose every stated attribute is drawn."""


def noisy_clip(spec: dict, rng: np.random.Generator) -> Clip:
    """A drawing for a caption of this spec, which may lie."""
    clip = draw_clip(mistaken(spec, attributes, broken, INTACT[len(spec["objects"])], rng), rng, lattice=True)
    if rng.uniform() < STRAY * clip.steadiness:
        wrong = attributes(spec)
        drawn = broken(spec, wrong[rng.integers(len(wrong))], rng)
        clip = replace(draw_clip(drawn, rng, lattice=True), steadiness=clip.steadiness)
    return clip


def video_bank(pipeline, folder: Path, name: str, noisy: bool, count: int = 98304, seed: int = 0) -> Bank:
    """Codes of ``count`` training clips, with true or noisy captions; kept as ``folder/<name>.safetensors``."""
    specs = [spec for specs in split_specs("train").values() for spec in specs]

    def make(index: int, batch: int = 64):
        rng = np.random.default_rng([seed, 43, index])
        chosen = draw_specs(specs, SKILL_SHARES, rng, batch)
        clips = (noisy_clip(specs[i], rng) if noisy else draw_clip(specs[i], rng, lattice=True) for i in chosen)
        code = np.stack([clip_code_of(clip) for clip in clips])
        noise = rng.normal(size=code.shape).astype(np.float32)
        return torch.from_numpy(code + JITTER * VIDEO_SCALE_C3[:, :, None, None] * noise), chosen

    latent, spec = stored_latents(folder / f"{name}.safetensors", count, make)
    length = architecture.VIDEO_SEQUENCE_LENGTH
    wordings = [tokenize(pipeline.tokenizer, captions(one), length) for one in specs]
    return Bank(latent, spec, wordings, tokenize(pipeline.tokenizer, [""], length)[0])


def video_network(pipeline):
    """Velocity of latents through a WanPipeline's text encoder and transformer."""
    compiled = torch.compile(pipeline.transformer)

    def velocity(noisy, sigma, ids):
        mask = ids != pipeline.tokenizer.pad_token_id
        text = pipeline.text_encoder(ids, mask)[0] * mask[:, :, None]  # zero after the end, as in the pipeline
        return compiled(hidden_states=noisy, timestep=1000 * sigma, encoder_hidden_states=text, return_dict=False)[0]

    return velocity
