"""Frames of `otca-video-v1`, which still draws and reads its frames as the first image task did.

The video task is replaced next; until then this holds what it needs of its own: still scenes over a light backdrop, a
segmentation by connected parts and outline templates, and how cleanly a frame is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

SIZE = 64
"""Side of an image in pixels."""

LATTICE = 8.0
"""Pixels of the lattice on which the generator's training clips lie."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLORS = {
    "red": (0.86, 0.15, 0.15),
    "yellow": (0.96, 0.78, 0.10),
    "green": (0.13, 0.62, 0.24),
    "blue": (0.15, 0.32, 0.86),
    "purple": (0.56, 0.20, 0.70),
    "black": (0.09, 0.09, 0.10),
}
RESIDUAL_SCALE = 0.04
"""Mean RGB distance from the ideal drawing at which quality falls to 1/e."""


@dataclass(frozen=True)
class SceneObject:
    """One drawn object: centre ``(x, y)`` and radius in pixels, colour as RGB in [0, 1]."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """One drawing of a spec: objects over a vertical gradient between two background colours (RGB in [0, 1])."""

    spec: dict
    objects: tuple[SceneObject, ...]
    background: tuple[tuple[float, float, float], tuple[float, float, float]]


def random_backdrop(rng: np.random.Generator):
    """A light tint of random hue, a little darker or lighter toward the bottom."""
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.0, 0.22), rng.uniform(0.84, 0.98)
    phase = 2 * np.pi * (hue - np.array([0, 1 / 3, 2 / 3]))
    top = value * (1 - saturation * (0.5 - 0.5 * np.cos(phase)))
    bottom = top + rng.uniform(-0.06, 0.06)
    return tuple(tuple(float(v) for v in np.clip(c, 0, 1)) for c in (top, bottom))


def signed_distance(shape: str, dx, dy, radius: float):
    """Signed distance in pixels to a shape's outline (negative inside); ``dx, dy`` are offsets from its centre."""
    ax, ay = np.abs(dx), np.abs(dy)
    if shape == "circle":
        return np.hypot(dx, dy) - radius
    if shape == "ring":
        return np.abs(np.hypot(dx, dy) - 0.75 * radius) - 0.25 * radius
    if shape == "square":
        return np.maximum(ax, ay) - 0.88 * radius
    if shape == "diamond":
        return (ax + ay - 1.15 * radius) / np.sqrt(2)
    if shape == "triangle":  # equilateral, one corner up, centroid at the centre, circumradius 1.2 r
        return np.maximum(dy - 0.6 * radius, (np.sqrt(3) * ax - dy) / 2 - 0.6 * radius)
    if shape == "cross":
        arm = 0.36 * radius
        return np.minimum(np.maximum(ax - radius, ay - arm), np.maximum(ax - arm, ay - radius))
    raise ValueError(f"unknown shape {shape!r}; choose from {', '.join(SHAPES)}")


_PIXEL_Y, _PIXEL_X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5


def render(scene: Scene) -> np.ndarray:
    """Draw a scene, anti-aliased by pixel coverage: float32 ``(3, SIZE, SIZE)`` in [0, 1]."""
    top, bottom = np.asarray(scene.background, dtype=np.float32)
    ramp = (_PIXEL_Y[:, :1] / SIZE)[None]
    image = (top[:, None, None] * (1 - ramp) + bottom[:, None, None] * ramp) * np.ones((1, 1, SIZE), np.float32)
    for obj in scene.objects:
        distance = signed_distance(obj.shape, _PIXEL_X - obj.x, _PIXEL_Y - obj.y, obj.radius)
        coverage = np.clip(0.5 - distance, 0, 1)
        image = image * (1 - coverage) + np.asarray(obj.rgb, np.float32)[:, None, None] * coverage
    return image.astype(np.float32)


MIN_AREA = 30
"""Pixels below which a segment is a speck, not an object (the smallest legal object covers about 80)."""

_PALETTE = np.asarray(list(COLORS.values()), np.float32)
_FOREGROUND = 0.24
"""RGB distance from the background above which a pixel belongs to an object."""
_COLOR_TOLERANCE = 0.16
_SHAPE_SHARPNESS = 24.0
_TEMPLATE = 24


@dataclass(frozen=True)
class Segment:
    """One segmented object: soft shape and colour, centre in pixels, area in pixels, best template overlap in [0, 1]."""

    shape_prob: np.ndarray
    color_prob: np.ndarray
    x: float
    y: float
    area: int
    overlap: float
    mask: np.ndarray
    rgb: np.ndarray


@dataclass(frozen=True)
class Reading:
    """What the verifier sees in one image: objects, the fitted background (3, H, W), and specks that are no object."""

    segments: list[Segment]
    background: np.ndarray
    speck_area: int


# --------------------------------------------------------------------------------------------------------- segmentation


def read(image_CHW: np.ndarray) -> Reading:
    """Segment one image, float (3, SIZE, SIZE) in [0, 1]."""
    background = _fit_background(image_CHW)
    distance = np.sqrt(np.square(image_CHW - background).sum(0))
    blobs, specks = _blobs(distance > _FOREGROUND)
    segments = []
    for blob in blobs:
        contrast = np.quantile(distance[blob], 0.8)
        for mask in _components(blob & (distance > 0.5 * contrast)):  # edges at half coverage
            for part in _split_by_color(image_CHW, mask):
                if part.sum() < MIN_AREA:
                    specks += int(part.sum())
                else:
                    segments.append(_describe(image_CHW, part))
    return Reading(segments, background, specks)


def _blobs(mask: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Connected parts of at least `MIN_AREA` pixels, as full-size masks, and the area of all smaller ones."""
    labels, _ = ndimage.label(mask)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    large = np.flatnonzero(areas >= MIN_AREA)
    return [labels == index for index in large], int(areas[areas < MIN_AREA].sum())


def _components(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts of a mask, as full-size masks."""
    labels, count = ndimage.label(mask)
    return [labels == index for index in range(1, count + 1)]


_BORDER = np.zeros((SIZE, SIZE), bool)
_BORDER[:2], _BORDER[-2:], _BORDER[:, :2], _BORDER[:, -2:] = True, True, True, True
_ROW = (np.mgrid[0:SIZE, 0:SIZE][0] + 0.5) / SIZE - 0.5


def _fit_background(image_CHW):
    """Vertical gradient fitted to the frame of the image, outliers (objects that touch it) trimmed twice."""
    value, row = image_CHW[:, _BORDER], _ROW[_BORDER]
    level, slope = np.median(value, axis=1), np.zeros(3)
    for _ in range(2):
        error = np.abs(value - level[:, None] - slope[:, None] * row).max(0)
        keep = error <= max(0.08, np.quantile(error, 0.5))
        r, v = row[keep], value[:, keep]
        spread = np.square(r - r.mean()).sum() + 1e-6
        slope = ((r - r.mean()) * (v - v.mean(1, keepdims=True))).sum(1) / spread
        level = v.mean(1) - slope * r.mean()
    return (level[:, None, None] + slope[:, None, None] * _ROW).astype(np.float32)


def _split_by_color(image_CHW, mask):
    """A touching pair of differently coloured objects becomes two masks; anything else stays whole."""
    inner = ndimage.binary_erosion(mask)
    if inner.sum() < MIN_AREA // 2:
        return [mask]
    nearest = np.square(image_CHW[None] - _PALETTE[:, :, None, None]).sum(1).argmin(0)
    share = np.bincount(nearest[inner], minlength=len(_PALETTE)) / inner.sum()
    major = np.flatnonzero(share > 0.2)
    if len(major) < 2:
        return [mask]
    rank = np.square(image_CHW[None] - _PALETTE[major][:, :, None, None]).sum(1).argmin(0)
    parts = []
    for index in range(len(major)):
        parts += _components(ndimage.binary_opening(mask & (rank == index)))
    return parts


def _describe(image_CHW, mask) -> Segment:
    inner = ndimage.binary_erosion(mask)
    core = inner if inner.sum() >= 8 else mask
    rgb = np.median(image_CHW[:, core], axis=1)
    color_distance = np.sqrt(np.square(_PALETTE - rgb).sum(1))
    color_prob = np.exp(-np.square(color_distance / _COLOR_TOLERANCE))
    color_prob = color_prob / max(1.0, color_prob.sum())
    overlap = _overlaps(mask)
    logits = _SHAPE_SHARPNESS * overlap
    shape_prob = np.exp(logits - logits.max())
    shape_prob = shape_prob / shape_prob.sum() * np.clip((overlap.max() - 0.6) / 0.25, 0, 1)
    y, x = ndimage.center_of_mass(mask)
    return Segment(shape_prob, color_prob, x + 0.5, y + 0.5, int(mask.sum()), float(overlap.max()), mask, rgb)


def _overlaps(mask) -> np.ndarray:
    """Overlap of a mask with each outline, in [0, 1]: intersection over union, averaged over two ways of laying one on the other.

    In equal bounding boxes the outlines differ most; at equal area and centre, worn corners matter least.
    """
    boxes, areas, aspects = _templates()
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    stretch = np.abs(np.log(height / width) - np.log(aspects))
    both = 0.5 * _iou(_boxed(mask), boxes) + 0.5 * _iou(_centred(mask), areas)
    return both * np.exp(-np.maximum(stretch - 0.12, 0) * 2)


def _iou(sample: np.ndarray, templates: np.ndarray) -> np.ndarray:
    return (sample & templates).sum((1, 2)) / (sample | templates).sum((1, 2))


_UNIT = (np.arange(_TEMPLATE) + 0.5) / _TEMPLATE


def _boxed(mask) -> np.ndarray:
    """The mask in its bounding box, sampled at 24 × 24 points."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    y = rows[0] + (_UNIT * (rows[-1] - rows[0] + 1)).astype(int)
    x = cols[0] + (_UNIT * (cols[-1] - cols[0] + 1)).astype(int)
    return mask[np.ix_(y, x)]


def _centred(mask) -> np.ndarray:
    """The mask around its centre of mass, scaled to unit area, over a square of side 2, sampled at 24 × 24 points."""
    side = np.sqrt(mask.sum())
    y, x = (np.rint(c + (2 * _UNIT - 1) * side).astype(int) for c in ndimage.center_of_mass(mask))
    inside = ((y >= 0) & (y < mask.shape[0]))[:, None] & ((x >= 0) & (x < mask.shape[1]))
    return mask[np.ix_(y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1))] & inside


@lru_cache(maxsize=1)
def _templates() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each outline, filled, both ways: two (shapes, 24, 24) arrays of bool, and height/width of the bounding boxes."""
    y, x = (np.mgrid[0:400, 0:400] + 0.5 - 200) / 120
    masks = [signed_distance(shape, x, y, 1.0) <= 0 for shape in SHAPES]
    aspects = [mask.any(1).sum() / mask.any(0).sum() for mask in masks]
    return np.stack([_boxed(m) for m in masks]), np.stack([_centred(m) for m in masks]), np.asarray(aspects)


def cleanness(image_CHW: np.ndarray, reading: Reading) -> float:
    """How cleanly what is there is drawn, 0 to 1: regular outlines, little distance from the ideal drawing, no specks."""
    if not reading.segments:
        return 0.0
    regular = np.mean([np.clip((s.overlap - 0.5) / 0.45, 0, 1) for s in reading.segments])
    residual = _residual(image_CHW, reading)
    return float(regular * np.exp(-residual / RESIDUAL_SCALE - reading.speck_area / 100))


def _residual(image_CHW: np.ndarray, reading: Reading) -> float:
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
