"""The three training rewards of the embedded video task, all read from pixels through the video verifier.

``vq`` (visual quality) asks for clean drawing in every frame, ``mq`` (motion quality) for something that really moves or
changes size, smoothly and without changing into something else, and ``ta`` (text alignment) for what the prompt says. Only
``ta`` reads the prompt. They pull apart: ``vq`` is best served by a frozen clip, for which ``mq`` pays nothing, and ``mq``
prefers fast to slow, whatever ``ta`` asks. A blank, a constant or a noise clip scores 0 on all three.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

from otca.tasks import video_frames, video_scenes, video_verifier
from otca.tasks.video_frames import SIZE, cleanness
from otca.tasks.video_scenes import FRAMES
from otca.tasks.video_verifier import Reading, Track, rise
from otca.types import Prompt

SHARP_WIDTH = 0.25
"""Width in pixels (as `_edge_width` counts) of an anti-aliased edge; up to it nothing is lost."""
EDGE_SCALE = 0.6
"""Width beyond that at which visual quality falls to 1/e; a Gaussian blur of σ pixels adds about 0.56 σ."""

SPEED_HALF = 0.75
"""Mean speed in pixels a frame at which the dynamic degree is one half; the slowest legal motion (1.2) has 0.83."""
GROWTH_HALF = 0.3
"""Change of log radius at which the dynamic degree is one half; the least legal growth (0.59) has 0.93."""
JERK_SCALE = 1.0
"""Pixels off a piecewise straight path at which smoothness is one half."""
BENDS = ((), (2,), (3,), (4,), (5,), (6,), (3, 5))
"""Frames at which a plausible path may change its velocity: never, once, or twice for a stop."""
SIZE_SCALE = 0.1
"""Standard deviation of log radius around a steady course at which steadiness falls to 1/e."""


@lru_cache(maxsize=128)
def _read(pixels: bytes) -> Reading:
    """Readings are shared by the three rewards (keyed by the clip's float32 bytes)."""
    return video_verifier.read(np.frombuffer(pixels, np.float32).reshape(FRAMES, 3, SIZE, SIZE))


class _VideoReward:
    """Splits a batch into clips and scores each from its reading."""

    modality = "video"
    reads_drawings = True  # of the embedded grammar; of other clips its score says nothing
    range = (0.0, 1.0)
    source = "this repository, otca/tasks/video_rewards.py"
    licence = "Apache-2.0"
    revision = "1"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], float32 (B,), of clips (B, 9, 3, 64, 64) in [0, 1]. Raises ValueError for another shape."""
        if tuple(media_BFCHW.shape[1:]) != (FRAMES, 3, SIZE, SIZE):
            raise ValueError(f"{self.name} takes clips (B, {FRAMES}, 3, {SIZE}, {SIZE}), got {tuple(media_BFCHW.shape)}")
        clip_BFCHW = np.ascontiguousarray(media_BFCHW.float().cpu().numpy())
        values = [self._one(clip, _read(clip.tobytes()), prompt) for clip, prompt in zip(clip_BFCHW, prompts)]
        return torch.tensor(values, dtype=torch.float32)


class VisualQuality(_VideoReward):
    """Clean drawing, mean over frames: the image task's quality (flat, even, regular, no specks) × sharp edges."""

    name = "vq"

    def _one(self, clip_FCHW, reading, prompt):
        return float(np.mean([cleanness(f, r) * _sharpness(f, r) for f, r in zip(clip_FCHW, reading.frames)]))


class MotionQuality(_VideoReward):
    """Plausible motion that is really there, mean over objects: dynamic degree × smoothness × identity × steady size.

    Objects that come and go between frames count against the whole clip.
    """

    name = "mq"

    def _one(self, clip_FCHW, reading, prompt):
        if not reading.objects:
            return 0.0
        change = np.mean([abs(len(frame.segments) - len(reading.objects)) for frame in reading.frames])
        return float(np.mean([_plausible(track) for track in reading.objects]) * np.exp(-change))


class TextAlignment(_VideoReward):
    """Soft agreement of the clip with the prompt's spec (`video_verifier.alignment`)."""

    name = "ta"
    check_prompt = staticmethod(video_scenes.check_spec)

    def _one(self, clip_FCHW, reading, prompt):
        self.check_prompt(prompt)
        return video_verifier.alignment(reading, prompt.spec)


# -------------------------------------------------------------------------------------------------------- visual quality


def _sharpness(image_CHW: np.ndarray, reading: video_frames.Reading) -> float:
    """Mean sharpness in [0, 1] of the objects' edges; 0 without objects."""
    if not reading.segments:
        return 0.0
    excess = [max(0.0, _edge_width(image_CHW, reading.background, s) - SHARP_WIDTH) for s in reading.segments]
    return float(np.mean(np.exp(-np.array(excess) / EDGE_SCALE)))


def _edge_width(image_CHW: np.ndarray, background_CHW: np.ndarray, segment: video_frames.Segment) -> float:
    """Integral of α(1 − α) across the outline, in pixels, with α the object's share of a pixel's colour.

    1/6 for an ideal anti-aliased edge, σ/√π for a Gaussian blur of σ pixels.
    """
    near = ndimage.binary_dilation(segment.mask, iterations=3)
    outline = segment.mask & ~ndimage.binary_erosion(segment.mask)
    base = background_CHW[:, near]
    span = segment.rgb[:, None] - base
    alpha = np.clip(((image_CHW[:, near] - base) * span).sum(0) / (np.square(span).sum(0) + 1e-6), 0, 1)
    return float((alpha * (1 - alpha)).sum() / outline.sum())


# -------------------------------------------------------------------------------------------------------- motion quality


def _plausible(track: Track) -> float:
    """Motion quality of one object in [0, 1]."""
    departure, speed = _course(track)
    dynamic = rise(np.hypot(speed / SPEED_HALF, track.growth / GROWTH_HALF), 1.0)
    smooth = 1 / (1 + np.square(departure / JERK_SCALE))
    return track.presence * dynamic * smooth * _identity(track) * _steadiness(track, speed)


def _course(track: Track) -> tuple[float, float]:
    """The simplest good piecewise straight path: root mean square departure from it in pixels, and its mean speed.

    The departure is per degree of freedom, so a bend must earn its place.
    """
    t_N, z_N = track.frame_N.astype(float), track.center_N
    best = (np.inf, 0.0)
    for bends in BENDS:
        basis = np.stack([np.ones_like(t_N), t_N, *(np.maximum(t_N - bend, 0) for bend in bends)], axis=1)
        free = len(t_N) - np.linalg.matrix_rank(basis)
        if free > 0:
            fit_N = basis @ np.linalg.lstsq(basis, z_N, rcond=None)[0]
            departure = float(np.sqrt(np.square(np.abs(z_N - fit_N)).sum() / free))
            best = min(best, (departure, float(np.mean(np.abs(np.diff(fit_N)) / np.diff(t_N)))))
    return best


def _identity(track: Track) -> float:
    """Constancy in [0, 1] of colour and outline over the frames."""
    rgb_NC = np.array([s.rgb for s in track.segments])
    shape_NS = np.array([s.shape_prob for s in track.segments])
    drift_N = np.square(rgb_NC - rgb_NC.mean(0)).sum(1) / 0.15**2
    change_N = np.square(shape_NS - shape_NS.mean(0)).sum(1) / 0.5**2
    return float(np.exp(-drift_N - change_N).mean())


def _steadiness(track: Track, speed: float) -> float:
    """Constancy in [0, 1] of the size: no flicker around a steady course, and no growth of an object that travels."""
    t_N, size_N = track.frame_N - track.frame_N.mean(), track.log_radius_N - track.log_radius_N.mean()
    flicker = np.std(size_N - track.growth / (FRAMES - 1) * t_N) / SIZE_SCALE
    growth = track.growth / GROWTH_HALF * rise(speed, SPEED_HALF)
    return float(np.exp(-np.square(flicker) - 0.5 * np.square(growth)))
