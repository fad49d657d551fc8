"""The training verifier of `otca-image-v2`: what a picture holds, read from its pixels by segmentation and templates.

It shares no code with the held-out judge (`otca/tasks/judge.py`), a learned detector. A whole batch is read at once: the
backdrop is fitted to the picture's frame, what stands out is cut into connected segments, and each segment is compared with
the outlines of the four shapes at its own place and area.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from otca.tasks.rendering import signed_distance
from otca.tasks.scenes import COLORS, SHAPES, SIZE

MIN_AREA = 24
"""Pixels below which a segment is a speck, not an object (the smallest legal object covers about 60)."""
FOREGROUND = 0.22
"""RGB distance from the backdrop above which a pixel belongs to an object."""
COLOR_TOLERANCE = 0.3
"""RGB distance from a palette colour at which its match falls to 1/e."""
SHAPE_SHARPNESS = 60.0
"""Slope of the softmax over the overlaps with the four outlines."""
OVERLAP = (0.5, 0.7)
"""Overlaps with the best outline from which a segment begins to count, and counts fully, as a shape."""

EDGES = (1.0, 3.0)
"""Widths in pixels of the edges of the outlines that a segment is compared with, crisp and soft; the better fit counts."""

_PALETTE = np.asarray(list(COLORS.values()), np.float32)
_WINDOW = 12  # half the side of the square around a segment in which it is compared with the outlines


@dataclass(frozen=True)
class Segment:
    """One segmented object: probabilities of shapes (4,) and colours (4,), centre in pixels, area in pixels."""

    shape_prob: np.ndarray
    color_prob: np.ndarray
    x: float
    y: float
    area: float


@dataclass(frozen=True)
class Reading:
    """What the verifier sees in one picture: objects, area of specks, the backdrop's RGB at top and bottom (2, 3), its misfit."""

    segments: list[Segment]
    speck_area: int
    background: np.ndarray
    misfit: float


# --------------------------------------------------------------------------------------------------------- segmentation


def read(image_BCHW: np.ndarray) -> list[Reading]:
    """Read pictures, float (B, 3, SIZE, SIZE) in [0, 1]."""
    count = len(image_BCHW)
    background_B2C, misfit_B = fit_background(image_BCHW)
    backdrop_BCHW = _ramp(background_B2C)
    offset_BCHW = image_BCHW - backdrop_BCHW
    distance_BHW = np.sqrt(np.square(offset_BCHW).sum(1))
    near = np.zeros((3, 3, 3), bool)
    near[1] = ndimage.generate_binary_structure(2, 1)  # pictures of a batch do not touch
    labels_BHW, found = ndimage.label(distance_BHW > FOREGROUND, near)
    area_N = np.bincount(labels_BHW.ravel(), minlength=found + 1)[1:]
    boxes = ndimage.find_objects(labels_BHW)
    speck_B, segments = np.zeros(count, int), [[] for _ in range(count)]
    large = np.flatnonzero(area_N >= MIN_AREA)
    for n in np.flatnonzero(area_N < MIN_AREA):
        speck_B[boxes[n][0].start] += area_N[n]
    if len(large):
        for b, segment in _describe(offset_BCHW, backdrop_BCHW, distance_BHW, labels_BHW, large, boxes):
            segments[b].append(segment)
    return [Reading(s, int(a), bg, float(m)) for s, a, bg, m in zip(segments, speck_B, background_B2C, misfit_B)]


_FRAME = np.zeros((SIZE, SIZE), bool)
_FRAME[0], _FRAME[-1], _FRAME[:, 0], _FRAME[:, -1] = True, True, True, True
_ROW = (np.mgrid[0:SIZE, 0:SIZE][0] + 0.5) / SIZE


def fit_background(image_BCHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RGB at top and bottom (B, 2, 3) of the vertical ramp fitted to the frame, outliers trimmed; its mean misfit (B,)."""
    value_BCN, row_N = image_BCHW[:, :, _FRAME], _ROW[_FRAME]
    level_BC, slope_BC = np.median(value_BCN, axis=2), np.zeros(image_BCHW.shape[:2], np.float32)
    for _ in range(3):
        fit_BCN = level_BC[:, :, None] + slope_BC[:, :, None] * row_N
        error_BN = np.abs(value_BCN - fit_BCN).max(1)
        keep_BN = (error_BN <= np.maximum(0.06, np.quantile(error_BN, 0.6, axis=1))[:, None]).astype(np.float32)
        weight_B = keep_BN.sum(1)
        row_B = (keep_BN * row_N).sum(1) / weight_B
        mean_BC = (keep_BN[:, None] * value_BCN).sum(2) / weight_B[:, None]
        apart_BN = keep_BN * (row_N - row_B[:, None])
        slope_BC = (apart_BN[:, None] * value_BCN).sum(2) / (np.square(apart_BN).sum(1) + 1e-6)[:, None]
        level_BC = mean_BC - slope_BC * row_B[:, None]
    misfit_B = np.quantile(np.abs(value_BCN - level_BC[:, :, None] - slope_BC[:, :, None] * row_N).max(1), 0.6, axis=1)
    return np.stack([level_BC, level_BC + slope_BC], axis=1).astype(np.float32), misfit_B


def _ramp(background_B2C: np.ndarray) -> np.ndarray:
    share_H1 = _ROW[:, :1].astype(np.float32)
    top, bottom = (background_B2C[:, i, :, None, None] for i in (0, 1))
    return np.broadcast_to(top * (1 - share_H1) + bottom * share_H1, (len(background_B2C), 3, SIZE, SIZE))


def _describe(offset_BCHW, backdrop_BCHW, distance_BHW, labels_BHW, large, boxes):
    """(picture, Segment) of each large label, all compared with the outlines at once."""
    picture_N = np.array([boxes[n][0].start for n in large])
    corner_N2 = np.array([[(axis.start + axis.stop) // 2 for axis in boxes[n][1:]] for n in large])  # of the padded pictures
    pad = ((0, 0), (_WINDOW, _WINDOW), (_WINDOW, _WINDOW))
    rows = corner_N2[:, 0, None, None] + np.arange(2 * _WINDOW)[:, None]
    columns = corner_N2[:, 1, None, None] + np.arange(2 * _WINDOW)
    where = (picture_N[:, None, None], rows, columns)
    own_NHW = np.pad(labels_BHW, pad)[where] == (large + 1)[:, None, None]
    own_NHW = ndimage.maximum_filter(own_NHW, (1, 5, 5))  # the soft rim, too
    distance_NHW = np.pad(distance_BHW, pad)[where] * own_NHW
    offset_CNHW = np.stack([np.pad(offset_BCHW[:, c], pad)[where] for c in range(3)])
    core_NHW = distance_NHW >= 0.75 * distance_NHW.max((1, 2), keepdims=True)
    size_N = core_NHW.sum((1, 2))
    mean_CN = (offset_CNHW * core_NHW).sum((2, 3)) / size_N  # of the object's colour from the backdrop
    base_CN = np.stack([(np.pad(backdrop_BCHW[:, c], pad)[where] * core_NHW).sum((1, 2)) for c in range(3)]) / size_N
    cover_NHW = (offset_CNHW * mean_CN[:, :, None, None]).sum(0) / np.square(mean_CN).sum(0)[:, None, None]
    cover_NHW = np.clip(cover_NHW, 0, 1) * own_NHW
    area_N = cover_NHW.sum((1, 2))
    center_N2 = np.stack([(cover_NHW * axis).sum((1, 2)) / area_N for axis in (_PIXEL_X, _PIXEL_Y)], axis=1)
    overlap_NS = outline_overlaps(cover_NHW, center_N2, area_N)
    logit_NS = SHAPE_SHARPNESS * (overlap_NS - overlap_NS.max(1, keepdims=True))
    shape_NS = np.exp(logit_NS) / np.exp(logit_NS).sum(1, keepdims=True)
    low, high = OVERLAP
    shape_NS = shape_NS * np.clip((overlap_NS.max(1, keepdims=True) - low) / (high - low), 0, 1)
    rgb_NC = (base_CN + mean_CN).T
    color_NK = np.exp(-np.square(np.linalg.norm(_PALETTE - rgb_NC[:, None], axis=2) / COLOR_TOLERANCE))
    color_NK = color_NK / np.maximum(1.0, color_NK.sum(1, keepdims=True))
    place_N2 = center_N2 + corner_N2[:, ::-1] - _WINDOW
    for i, b in enumerate(picture_N):
        yield b, Segment(shape_NS[i], color_NK[i], *place_N2[i].tolist(), float(area_N[i]))


_UNIT_AREA = {"circle": np.pi, "square": 1.76**2, "triangle": 0.75 * np.sqrt(3) * 1.44, "cross": 4 * 0.72 - 0.72**2}
"""Area of each shape of radius 1."""
_PIXEL_Y, _PIXEL_X = np.mgrid[0 : 2 * _WINDOW, 0 : 2 * _WINDOW] + 0.5


def outline_overlaps(cover_NHW: np.ndarray, center_N2: np.ndarray, area_N: np.ndarray) -> np.ndarray:
    """Soft intersection over union (N, 4) of coverages with each shape of the same area around the same centre."""
    dx = _PIXEL_X - center_N2[:, 0, None, None]
    dy = _PIXEL_Y - center_N2[:, 1, None, None]
    out = []
    for shape in SHAPES:
        distance_NHW = signed_distance(shape, dx, dy, np.sqrt(area_N / _UNIT_AREA[shape])[:, None, None]).astype(np.float32)
        fits = []
        for softness in EDGES:
            outline = np.clip(0.5 - distance_NHW / softness, 0, 1)
            fits.append(np.minimum(cover_NHW, outline).sum((1, 2)) / np.maximum(cover_NHW, outline).sum((1, 2)))
        out.append(np.maximum(*fits))
    return np.stack(out, axis=1)


# -------------------------------------------------------------------------------------------------------------- scoring


def alignment(reading: Reading, spec: dict) -> float:
    """Soft agreement with a spec in [0, 1]: mean match of the demanded objects × surplus penalty × relation × place.

    0 for an image without objects. A match is the product of the segment's probabilities of the demanded shape and
    colour (a free colour asks for any palette colour); the best assignment counts.
    """
    wanted, found = spec["objects"], sorted(reading.segments, key=lambda s: -s.area)[:5]
    if not found:
        return 0.0
    match = np.asarray([[_match(segment, demand) for segment in found] for demand in wanted])
    best, chosen = assign(match)
    surplus = max(0, len(reading.segments) - len(wanted)) + reading.speck_area / 100
    score = best / len(wanted) * 0.6**surplus
    if spec["relation"] is not None:
        score *= 0.4 + 0.6 * _relation(spec["relation"], found, chosen)
    if spec["place"] is not None:
        score *= 0.4 + 0.6 * _place(spec["place"], found[chosen[0]])
    return float(score)


def satisfied(reading: Reading, spec: dict) -> bool:
    """Hard verdict of the verifier: exactly the demanded objects, each matched with at least one half."""
    if len(reading.segments) != len(spec["objects"]) or reading.speck_area > 2 * MIN_AREA:
        return False
    match = np.asarray([[_match(segment, demand) for segment in reading.segments] for demand in spec["objects"]])
    _, chosen = assign(match)
    if min(match[i, j] for i, j in enumerate(chosen)) < 0.5:
        return False
    if spec["place"] is not None and _place(spec["place"], reading.segments[0]) <= 0.5:
        return False
    return spec["relation"] is None or _relation(spec["relation"], reading.segments, chosen) > 0.5


def _match(segment: Segment, demand: dict) -> float:
    tint = segment.color_prob[list(COLORS).index(demand["color"])] if demand["color"] else segment.color_prob.max()
    return float(segment.shape_prob[SHAPES.index(demand["shape"])] * tint)


def assign(match: np.ndarray) -> tuple[float, tuple[int, ...]]:
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
    return _soft(along - abs(across))


def _place(place: str, segment: Segment) -> float:
    """Soft truth in [0, 1] of a segment's centre lying in a half or quarter of the picture."""
    offsets = {"left": SIZE / 2 - segment.x, "right": segment.x - SIZE / 2}
    offsets |= {"top": SIZE / 2 - segment.y, "bottom": segment.y - SIZE / 2}
    return float(np.prod([_soft(offsets[side]) for side in place.split()]))


def _soft(pixels: float) -> float:
    return float(1 / (1 + np.exp(-pixels / 2.0)))
