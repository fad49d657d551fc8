"""The three training rewards of `otca-image-v2`, read from pixels; each asks for something else, decided at its own time.

``alignment`` asks for what the prompt says (count, shapes, colours, where), ``quality`` for a crisp finish and is blind to
what is drawn, ``aesthetic`` for a style: a backdrop that glows warm toward the bottom. The base model's warm pictures hold
more that nobody asked for, so style pulls against alignment. They share no factor; a blank, a constant or a noise picture
scores worst on each.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from otca.tasks import scenes, verifier
from otca.tasks.scenes import SIZE
from otca.types import Prompt

SHARPNESS = (0.2, 0.38)
"""Sharpness of edges that is none, and enough; the crispest drawings of the autoencoder have 0.41."""
GRAIN = 0.01
"""Mean step from pixel to pixel in flat places up to which they count as flat; the crispest drawings have 0.006."""
GLOW = 0.26
"""Gain of red over blue from the top to the bottom of a backdrop that is warm enough; the warmest of the grammar gains 0.32."""
STRAY_LIGHT = 0.08
"""Misfit of a backdrop up to which it counts as one."""


@lru_cache(maxsize=4)
def _read(pixels: bytes) -> list[verifier.Reading]:
    """Readings of a batch (keyed by its float32 bytes)."""
    return verifier.read(np.frombuffer(pixels, np.float32).reshape(-1, 3, SIZE, SIZE))


class _EmbeddedReward:
    """Checks a batch of pictures and scores it at once."""

    modality = "image"
    reads_drawings = True  # of the embedded grammar; of other pictures its score says nothing
    range = (0.0, 1.0)
    source = "this repository, otca/tasks/rewards.py"
    licence = "Apache-2.0"
    revision = "2"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], float32 (B,), of images (B, 1, 3, 64, 64) in [0, 1]; the spec of each prompt is required."""
        if tuple(media_BFCHW.shape[1:]) != (1, 3, SIZE, SIZE):
            raise ValueError(f"{self.name} takes images (B, 1, 3, {SIZE}, {SIZE}), got {tuple(media_BFCHW.shape)}")
        image_BCHW = np.ascontiguousarray(media_BFCHW[:, 0].float().cpu().numpy())
        return torch.tensor(np.asarray(self._scores(image_BCHW, prompts)), dtype=torch.float32)


class Alignment(_EmbeddedReward):
    """Soft agreement of the drawing with the prompt's spec (`verifier.alignment`)."""

    name = "alignment"
    check_prompt = staticmethod(scenes.check_spec)

    def _scores(self, image_BCHW, prompts):
        for prompt in prompts:
            self.check_prompt(prompt)
        return [verifier.alignment(reading, prompt.spec) for reading, prompt in zip(_read(image_BCHW.tobytes()), prompts)]


class Quality(_EmbeddedReward):
    """A crisp finish: sharp edges, flat fills."""

    name = "quality"

    def _scores(self, image_BCHW, prompts):
        return crispness_B(image_BCHW)


class Aesthetic(_EmbeddedReward):
    """A warm glow: how much the backdrop gains in red over blue from its top to its bottom."""

    name = "aesthetic"

    def _scores(self, image_BCHW, prompts):
        background_B2C, misfit_B = verifier.fit_background(image_BCHW)
        warmth_B2 = background_B2C[:, :, 0] - background_B2C[:, :, 2]
        glow_B = np.clip((warmth_B2[:, 1] - warmth_B2[:, 0]) / GLOW, 0, 1)
        return glow_B * np.exp(-np.square(np.maximum(misfit_B - STRAY_LIGHT, 0) / 0.1))


def crispness_B(image_BCHW: np.ndarray) -> np.ndarray:
    """How crisp pictures are finished, in [0, 1]: steps as high as the contrast around them, and no steps elsewhere.

    The height of a step is the largest difference of a channel from one pixel to the next, contrast is the range of values
    in the 5×5 pixels around. A picture without edges, or without flat places, scores 0.
    """
    step_BHW = np.maximum(
        np.abs(np.diff(image_BCHW, axis=2, append=image_BCHW[:, :, -1:])).max(1),
        np.abs(np.diff(image_BCHW, axis=3, append=image_BCHW[:, :, :, -1:])).max(1),
    )
    window = (1, 1, 5, 5)
    contrast_BHW = (ndimage.maximum_filter(image_BCHW, window) - ndimage.minimum_filter(image_BCHW, window)).max(1)
    edge_BHW = contrast_BHW > 0.25
    flat_BHW = ~edge_BHW
    sharpness_B = np.square(step_BHW * edge_BHW).sum((1, 2)) / (np.sum(step_BHW * contrast_BHW * edge_BHW, (1, 2)) + 1e-6)
    grain_B = (step_BHW * flat_BHW).sum((1, 2)) / (flat_BHW.sum((1, 2)) + 1e-6)
    none, enough = SHARPNESS
    sharp_B = np.clip((sharpness_B - none) / (enough - none), 0, 1)
    smooth_B = np.exp(-np.maximum(grain_B - GRAIN, 0) / 0.05)
    return sharp_B * smooth_B * (flat_BHW.mean((1, 2)) > 0.3)
