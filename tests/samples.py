"""Pictures, prompts and random weights that published scorers and metrics are tested on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from otca.types import Prompt

SIZES = [(40, 64), (61, 37), (48, 48)]
TEXTS = ["a red cube", "two green spheres &amp; a café", "a red cube"]
LONG = "a very long prompt about cubes, " * 30


LAYOUTS = json.loads((Path(__file__).parent / "fixtures" / "layouts.json").read_text())
"""Names of all tensors of published files: shape, scale and offset of noise in a small one; of raft-things.pth the shapes."""


def small_weights(file):
    """Random tensors under every name of a published file."""
    generator = torch.Generator().manual_seed(0)
    drawn = LAYOUTS[file].items()
    return {name: offset + scale * torch.randn(shape, generator=generator) for name, (shape, scale, offset) in drawn}


def randomised(model):
    """Weights large enough that every picture and every text has its own features."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval()


def media_of(size, samples=3, frames=1):
    rng = np.random.default_rng(sum(size))
    ramp = np.linspace(-60, 315, size[0] * size[1] * 3).reshape(*size, 3)
    levels = np.clip(ramp + rng.normal(0, 80, (samples, frames, *size, 3)), 0, 255).astype(np.uint8)
    return torch.from_numpy(levels).movedim(-1, 2).float() / 255


def saved(media_BFCHW):
    """What a file of each picture would hold."""
    levels = (media_BFCHW.flatten(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in levels]


def prompts(texts):
    return [Prompt(id=str(i), text=text) for i, text in enumerate(texts)]


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth random texture (3, H, W) in [0, 1]."""
    noise = np.random.default_rng(seed).uniform(size=(3, height, width))
    smooth = gaussian_filter(noise, (0, 1.5, 1.5))
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.float32)
