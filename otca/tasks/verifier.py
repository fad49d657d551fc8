"""The training verifier: reads a drawing from pixels by segmentation and template matching, and scores it softly.

It knows the palette and the outlines of the grammar, never the scene. The held-out judge (`judge.py`) is a learned
detector that shares no code with it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from otca.tasks.scenes import COLORS, SHAPES, SIZE, signed_distance

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


# -------------------------------------------------------------------------------------------------------------- scoring


def alignment(reading: Reading, spec: dict) -> float:
    """Soft agreement with a spec in [0, 1]: mean match of the demanded objects × surplus penalty × relation.

    0 for an image without objects. A match is the product of the segment's probabilities of the demanded shape and
    colour (a free colour asks for any palette colour); the best assignment counts.
    """
    wanted, found = spec["objects"], sorted(reading.segments, key=lambda s: -s.area)[:6]
    if not found:
        return 0.0
    match = np.asarray([[_match(segment, demand) for segment in found] for demand in wanted])
    best, chosen = _assign(match)
    surplus = max(0, len(reading.segments) - len(wanted)) + reading.speck_area / 100
    score = best / len(wanted) * 0.7**surplus
    if spec["relation"] is not None:
        score *= 0.4 + 0.6 * _relation(spec["relation"], found, chosen)
    return float(score)


def satisfied(reading: Reading, spec: dict) -> bool:
    """Hard verdict of the verifier: exactly the demanded objects, each matched with at least one half."""
    if len(reading.segments) != len(spec["objects"]) or reading.speck_area > 2 * MIN_AREA:
        return False
    match = np.asarray([[_match(segment, demand) for segment in reading.segments] for demand in spec["objects"]])
    _, chosen = _assign(match)
    if min(match[i, j] for i, j in enumerate(chosen)) < 0.5:
        return False
    return spec["relation"] is None or _relation(spec["relation"], reading.segments, chosen) > 0.5


def _match(segment: Segment, demand: dict) -> float:
    colors = list(COLORS)
    tint = segment.color_prob[colors.index(demand["color"])] if demand["color"] else segment.color_prob.max()
    return float(segment.shape_prob[SHAPES.index(demand["shape"])] * tint)


def _assign(match: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """Best total of a matching of demands (rows) to segments; a demand without a segment gets index -1 and 0."""
    rows, cols = match.shape
    padded = np.concatenate([match, np.zeros((rows, max(0, rows - cols)))], axis=1)
    options = itertools.permutations(range(padded.shape[1]), rows)
    best = max(options, key=lambda p: sum(padded[i, j] for i, j in enumerate(p)))
    return float(sum(padded[i, j] for i, j in enumerate(best))), tuple(j if j < cols else -1 for j in best)


def _relation(relation: str, segments: list[Segment], chosen: tuple[int, ...]) -> float:
    """Soft truth in [0, 1] of 'object 0 is <relation> object 1', from the two centres."""
    if -1 in chosen:
        return 0.0
    first, second = segments[chosen[0]], segments[chosen[1]]
    dx, dy = second.x - first.x, second.y - first.y
    along, across = (dx, dy) if relation == "left of" else (dy, dx)
    return float(1 / (1 + np.exp(-(along - abs(across)) / 2.0)))
