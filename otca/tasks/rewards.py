"""The three training rewards of the embedded image task, all read from pixels through the verifier.

``alignment`` asks for what the prompt says, ``quality`` for clean, sharp, regular drawing of whatever is there, and
``aesthetic`` is a style preference: a warm backdrop and objects that fill the frame. The last pulls against the first
a little: large objects touch, and more objects fill the frame faster than the prompt allows. A blank, a constant or a
noise image scores 0 on all three.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from otca.tasks import scenes, verifier
from otca.tasks.scenes import SIZE
from otca.types import Prompt

RESIDUAL_SCALE = 0.04
"""Mean RGB distance from the ideal drawing at which quality falls to 1/e."""

WARMTH_SCALE = 0.08
"""Red minus blue of the backdrop at which warmth is 0.73 (a logistic)."""

READABLE_RESIDUAL = 0.08
"""Mean RGB distance from the ideal drawing beyond which there is nothing to like (textures, noise)."""

FILL_TARGET = 0.28
"""Share of the frame that the objects should cover."""


@lru_cache(maxsize=512)
def _read(pixels: bytes) -> verifier.Reading:
    """Readings are shared by the three rewards (keyed by the image's float32 bytes)."""
    return verifier.read(np.frombuffer(pixels, np.float32).reshape(3, SIZE, SIZE))


class _EmbeddedReward:
    """Splits a batch into images and scores each from its reading."""

    modality = "image"
    reads_drawings = True  # of the embedded grammar; of other pictures its score says nothing
    range = (0.0, 1.0)
    source = "this repository, otca/tasks/rewards.py"
    licence = "Apache-2.0"
    revision = "1"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], float32 (B,), of images (B, 1, 3, 64, 64) in [0, 1]; the spec of each prompt is required."""
        if tuple(media_BFCHW.shape[1:]) != (1, 3, SIZE, SIZE):
            raise ValueError(f"{self.name} takes images (B, 1, 3, {SIZE}, {SIZE}), got {tuple(media_BFCHW.shape)}")
        image_BCHW = np.ascontiguousarray(media_BFCHW[:, 0].float().cpu().numpy())
        values = [self._one(image, _read(image.tobytes()), prompt) for image, prompt in zip(image_BCHW, prompts)]
        return torch.tensor(values, dtype=torch.float32)


class Alignment(_EmbeddedReward):
    """Soft agreement of the drawing with the prompt's spec (`verifier.alignment`)."""

    name = "alignment"
    check_prompt = staticmethod(scenes.check_spec)

    def _one(self, image_CHW, reading, prompt):
        self.check_prompt(prompt)
        return verifier.alignment(reading, prompt.spec)


class Quality(_EmbeddedReward):
    """Clean drawing: flat fills, sharp edges, an even backdrop, regular outlines, no specks."""

    name = "quality"

    def _one(self, image_CHW, reading, prompt):
        return cleanness(image_CHW, reading)


class Aesthetic(_EmbeddedReward):
    """Half warm backdrop, half filled frame; nothing without a recognisable object."""

    name = "aesthetic"

    def _one(self, image_CHW, reading, prompt):
        if not reading.segments:
            return 0.0
        presence = max(np.clip((s.overlap - 0.6) / 0.2, 0, 1) for s in reading.segments)
        red, _, blue = reading.background.mean((1, 2))
        warmth = 1 / (1 + np.exp(-(red - blue) / WARMTH_SCALE))
        fill = min(1.0, sum(s.area for s in reading.segments) / (FILL_TARGET * SIZE * SIZE))
        readable = np.exp(-np.square(_residual(image_CHW, reading) / READABLE_RESIDUAL) - reading.speck_area / 200)
        return float(presence * readable * (0.5 * warmth + 0.5 * fill))


def cleanness(image_CHW: np.ndarray, reading: verifier.Reading) -> float:
    """How cleanly what is there is drawn, 0 to 1: regular outlines, little distance from the ideal drawing, no specks."""
    if not reading.segments:
        return 0.0
    regular = np.mean([np.clip((s.overlap - 0.5) / 0.45, 0, 1) for s in reading.segments])
    residual = _residual(image_CHW, reading)
    return float(regular * np.exp(-residual / RESIDUAL_SCALE - reading.speck_area / 100))


def _residual(image_CHW: np.ndarray, reading: verifier.Reading) -> float:
    """Mean RGB distance from the ideal drawing: each segment in its median colour over the fitted backdrop, blended at edges."""
    distance = np.sqrt(np.square(image_CHW - reading.background).sum(0))
    for segment in reading.segments:
        outer = ndimage.binary_dilation(segment.mask)
        inner = ndimage.binary_erosion(segment.mask)
        span = segment.rgb[:, None] - reading.background[:, outer]
        offset = image_CHW[:, outer] - reading.background[:, outer]
        blend = np.clip((offset * span).sum(0) / (np.square(span).sum(0) + 1e-6), 0, 1)
        blend[inner[outer]] = 1.0
        distance[outer] = np.sqrt(np.square(offset - blend * span).sum(0))
    return float(distance.mean())
