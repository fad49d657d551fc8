"""The training rewards of the embedded tasks, read from pixels; each asks for something else, decided at its own time.

Of images, ``alignment`` asks for what the prompt says (count, shapes, colours, where), ``quality`` for a crisp finish and is
blind to what is drawn, ``aesthetic`` for a style: a backdrop that glows warm toward the bottom. The base model's warm pictures
hold more that nobody asked for, so style pulls against alignment. Of clips, ``ta`` (text alignment) asks for the objects, their
courses, speeds and relation, ``mq`` (motion quality) for a steady way, ``vq`` (visual quality) for the finish of the frames.
The three of a modality share no factor; what is blank, constant, noise or (of clips) still scores worst on each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from otca.tasks import scenes, verifier, video_scenes, video_verifier
from otca.tasks.scenes import SIZE
from otca.types import Prompt


@dataclass(frozen=True)
class Finish:
    """What a crisp finish is, as an autoencoder draws it.

    ``sharpness`` of edges that is none, and enough; ``grain``: mean step from pixel to pixel up to which places count as flat.
    """

    sharpness: tuple[float, float]
    grain: float


IMAGE_CRISP, VIDEO_CRISP = Finish((0.2, 0.38), 0.01), Finish((0.22, 0.255), 0.024)
GLOW = 0.26
"""Gain of red over blue from the top to the bottom of a backdrop that is warm enough; the warmest of the grammar gains 0.32."""
STRAY_LIGHT = 0.08
"""Misfit of a backdrop up to which it counts as one."""
STIR = 0.005
"""Share of the pixels that change in the course of a clip, below which it is a still."""


@lru_cache(maxsize=4)
def _tracks(pixels: bytes) -> list[tuple[video_verifier.Track, ...]]:
    """Tracks of a batch of clips, which two rewards need (keyed by its float32 bytes)."""
    return video_verifier.read(np.frombuffer(pixels, np.float32).reshape(-1, video_scenes.FRAMES, 3, SIZE, SIZE))


class _EmbeddedReward:
    """Checks a batch and scores it at once."""

    modality = "image"
    frames = 1
    reads_drawings = True  # of the embedded grammar; of other media its score says nothing
    range = (0.0, 1.0)
    source = "this repository, otca/tasks/rewards.py"
    licence = "Apache-2.0"
    revision = "2"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], float32 (B,), of media (B, frames, 3, 64, 64) in [0, 1]; some rewards need each prompt's spec."""
        if tuple(media_BFCHW.shape[1:]) != (self.frames, 3, SIZE, SIZE):
            raise ValueError(f"{self.name} takes media (B, {self.frames}, 3, {SIZE}, {SIZE}), got {tuple(media_BFCHW.shape)}")
        media = np.ascontiguousarray(media_BFCHW.float().cpu().numpy())
        return torch.tensor(np.asarray(self._scores(media[:, 0] if self.frames == 1 else media, prompts)), dtype=torch.float32)


class Alignment(_EmbeddedReward):
    """Soft agreement of the drawing with the prompt's spec (`verifier.alignment`)."""

    name = "alignment"
    check_prompt = staticmethod(scenes.check_spec)

    def _scores(self, image_BCHW, prompts):
        for prompt in prompts:
            self.check_prompt(prompt)
        return [verifier.alignment(reading, prompt.spec) for reading, prompt in zip(verifier.read(image_BCHW), prompts)]


class Quality(_EmbeddedReward):
    """A crisp finish: sharp edges, flat fills."""

    name = "quality"

    def _scores(self, image_BCHW, prompts):
        return crispness_B(image_BCHW, IMAGE_CRISP)


class Aesthetic(_EmbeddedReward):
    """A warm glow: how much the backdrop gains in red over blue from its top to its bottom."""

    name = "aesthetic"

    def _scores(self, image_BCHW, prompts):
        background_B2C, misfit_B = verifier.fit_background(image_BCHW)
        warmth_B2 = background_B2C[:, :, 0] - background_B2C[:, :, 2]
        glow_B = np.clip((warmth_B2[:, 1] - warmth_B2[:, 0]) / GLOW, 0, 1)
        return glow_B * np.exp(-np.square(np.maximum(misfit_B - STRAY_LIGHT, 0) / 0.1))


class _VideoReward(_EmbeddedReward):
    modality = "video"
    frames = video_scenes.FRAMES


class TextAlignment(_VideoReward):
    """Soft agreement of the clip with the prompt's spec (`video_verifier.alignment`)."""

    name = "ta"
    check_prompt = staticmethod(video_scenes.check_spec)

    def _scores(self, media_BFCHW, prompts):
        for prompt in prompts:
            self.check_prompt(prompt)
        return [video_verifier.alignment(found, p.spec) for found, p in zip(_tracks(media_BFCHW.tobytes()), prompts)]


class MotionQuality(_VideoReward):
    """A smooth way and a constant identity of what moves (`video_verifier.motion_quality`)."""

    name = "mq"

    def _scores(self, media_BFCHW, prompts):
        return [video_verifier.motion_quality(found) for found in _tracks(media_BFCHW.tobytes())]


class VisualQuality(_VideoReward):
    """A crisp finish of the frames, as `Quality` of each; nothing for a still."""

    name = "vq"

    def _scores(self, media_BFCHW, prompts):
        frame_NCHW = media_BFCHW.reshape(-1, *media_BFCHW.shape[2:])
        crisp_BF = crispness_B(frame_NCHW, VIDEO_CRISP).reshape(media_BFCHW.shape[:2])
        stirred_B = (np.ptp(media_BFCHW, axis=1).max(1) > 0.2).mean((1, 2)) > STIR
        return crisp_BF.mean(1) * stirred_B


def crispness_B(image_BCHW: np.ndarray, crisp: Finish) -> np.ndarray:
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
    none, enough = crisp.sharpness
    sharp_B = np.clip((sharpness_B - none) / (enough - none), 0, 1)
    smooth_B = np.exp(-np.maximum(grain_B - crisp.grain, 0) / 0.05)
    return sharp_B * smooth_B * (flat_BHW.mean((1, 2)) > 0.3)
