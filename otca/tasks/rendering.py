"""How scenes become pixels: shapes by their signed distance, anti-aliased by coverage, then made soft and grainy."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from otca.tasks.scenes import SHAPES, SIZE, Scene

_BLUR, _GRAIN = 1.0, 0.05
"""Gaussian blur (pixels) and amplitude of the grain of a drawing with the worst finish."""


def signed_distance(shape: str, dx, dy, radius: float):
    """Signed distance in pixels to a shape's outline (negative inside); ``dx, dy`` are offsets from its centre."""
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "square":
        return np.maximum(ax, ay) - 0.88 * radius
    if shape == "triangle":  # equilateral, one corner up, centroid at the centre, circumradius 1.2 r
        return np.maximum(dy - 0.6 * radius, (np.sqrt(3) * ax - dy) / 2 - 0.6 * radius)
    if shape == "cross":
        arm = 0.36 * radius
        return np.minimum(np.maximum(ax - radius, ay - arm), np.maximum(ax - arm, ay - radius))
    raise ValueError(f"unknown shape {shape!r}; choose from {', '.join(SHAPES)}")


_PIXEL_Y, _PIXEL_X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
_WEAVE = np.where((np.arange(SIZE)[:, None] // 2 + np.arange(SIZE)[None] // 2) % 2, 1.0, -1.0).astype(np.float32)
"""The grain: a checkerboard of two-pixel squares, the same in every picture, so that an autoencoder can redraw it."""


def render(scene: Scene) -> np.ndarray:
    """Draw a scene, anti-aliased by pixel coverage, then finish it: float32 ``(3, SIZE, SIZE)`` in [0, 1]."""
    top, bottom = scene.background.astype(np.float32)
    ramp = (_PIXEL_Y[:, :1] / SIZE)[None]
    image = (top[:, None, None] * (1 - ramp) + bottom[:, None, None] * ramp) * np.ones((1, 1, SIZE), np.float32)
    for obj in scene.objects:
        distance = signed_distance(obj.shape, _PIXEL_X - obj.x, _PIXEL_Y - obj.y, obj.radius)
        coverage = np.clip(0.5 - distance, 0, 1)
        image = image * (1 - coverage) + np.asarray(obj.rgb, np.float32)[:, None, None] * coverage
    return finished(image, scene.finish)


def finished(image_CHW: np.ndarray, finish: float) -> np.ndarray:
    """A crisp picture made soft and grainy by what ``finish`` lacks of 1."""
    flaw = 1 - finish
    if flaw > 0:
        soft = ndimage.gaussian_filter(image_CHW, (0, _BLUR * flaw, _BLUR * flaw), mode="nearest")
        image_CHW = np.clip(soft + _GRAIN * flaw * _WEAVE, 0, 1)
    return image_CHW.astype(np.float32)
