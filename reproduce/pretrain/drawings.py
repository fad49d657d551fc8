"""Drawings that teach the held-out evaluators: sloppy but valid objects, malformed ones, and images of nothing.

Placement knows no legal specs: any number of objects of any shapes and colours, so the judge has no prior on them.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from otca.tasks.judge import COLOR_CLASSES, MALFORMED, OTHER, SHAPE_CLASSES
from otca.tasks.rendering import signed_distance
from otca.tasks.scenes import COLORS, SHAPES, SIZE, SKILLS, Scene, all_specs, draw_scene

_PIXEL_Y, _PIXEL_X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)

FAULTS = ("faded", "soft", "morph", "chopped", "bitten", "stretched", "wobbly", "merged", "speck", "tinted", "patchy")
"""Ways in which an object goes wrong: the last two spoil its colour, the others its shape."""
_FAULT_ODDS = np.array([1, 1, 1, 1, 1, 1, 1, 2.5, 0.5, 1, 2.5]) / 13.5  # the harder to tell, the more often


@dataclass(frozen=True)
class Label:
    """What the judge should say of one thing: centre and radius in pixels, index into its shape and colour classes.

    A class of -1 is not judged (the colour of a malformed thing).
    """

    x: float
    y: float
    radius: float
    shape: int
    color: int


@dataclass
class _Style:
    """How far one object strays from the renderer's; the defaults are the renderer's own drawing."""

    softness: float = 1.0
    stretch: float = 1.0
    wobble: float = 0.0
    opacity: float = 1.0


@functools.cache
def skill_specs(skill: str) -> list[dict]:
    """`scenes.all_specs`, made once."""
    return all_specs(skill)


def random_spec_scene(rng: np.random.Generator, skill: str | None = None, lattice: bool = False) -> Scene:
    """A drawing of a spec of any split; skills evenly, unless one is named."""
    specs = skill_specs(skill or SKILLS[rng.integers(len(SKILLS))])
    return draw_scene(specs[rng.integers(len(specs))], rng, lattice)


def random_drawing(rng: np.random.Generator, fault_rate: float = 0.45) -> tuple[np.ndarray, list[Label]]:
    """0–6 objects anywhere, ``fault_rate`` of the images with faulty ones: float32 (3, SIZE, SIZE) in [0, 1], labels."""
    image = random_background(rng)
    share = rng.uniform(0.2, 1.0) if rng.uniform() < fault_rate else 0.0
    sloppiness = rng.uniform(0, 1) * (rng.uniform() < 0.6)
    labels = []
    for x, y, radius in _random_layout(rng):
        fault = str(rng.choice(FAULTS, p=_FAULT_ODDS)) if rng.uniform() < share else None
        image, found = draw_thing(image, x, y, radius, fault, sloppiness, rng)
        labels += found
    return image, labels


def random_background(rng: np.random.Generator) -> np.ndarray:
    """A light two-colour ramp, as the renderer's or freer: float32 (3, SIZE, SIZE) in [0, 1]."""
    if rng.uniform() < 0.7:
        top, bottom = np.asarray(random_spec_scene(rng, "single_object").background)
    else:
        top = rng.uniform(0.62, 1.0, 3)
        bottom = np.clip(top + rng.uniform(-0.1, 0.1, 3), 0, 1)
    ramp = ((_PIXEL_Y if rng.uniform() < 0.8 else _PIXEL_X) / SIZE)[None]
    return (top[:, None, None] * (1 - ramp) + bottom[:, None, None] * ramp).astype(np.float32)


def random_emptiness(rng: np.random.Generator) -> np.ndarray:
    """An image of nothing: a constant, a ramp, noise at any scale, or noise over either; (3, SIZE, SIZE) in [0, 1]."""
    kind = rng.integers(4)
    if kind == 0:
        image = np.ones((3, SIZE, SIZE)) * rng.uniform(0, 1, (3, 1, 1)) ** rng.uniform(0.2, 2)
    elif kind == 1:
        image = random_background(rng)
    else:
        cells = SIZE // int(rng.choice([1, 2, 4, 8, 16, 32]))
        clouds = rng.normal(size=(3 if rng.uniform() < 0.7 else 1, cells, cells)).repeat(SIZE // cells, 1)
        clouds = _smooth(clouds.repeat(SIZE // cells, 2), SIZE // cells)
        image = rng.uniform(0, 1, (3, 1, 1)) + rng.uniform(0.05, 0.6) * clouds
    if rng.uniform() < 0.4:
        image = image + rng.uniform(0.02, 0.3) * rng.normal(size=(3, SIZE, SIZE))
    return np.clip(image, 0, 1).astype(np.float32)


def ghosts(images: list[np.ndarray], labels: list[list[Label]], rng) -> tuple[np.ndarray, list[Label]]:
    """A double exposure of two drawings: nothing in it is well drawn."""
    t = rng.uniform(0.35, 0.65)
    malformed = SHAPE_CLASSES.index(MALFORMED)
    spoiled = [Label(one.x, one.y, one.radius, malformed, -1) for found in labels for one in found]
    return images[0] * (1 - t) + images[1] * t, spoiled


def _random_layout(rng) -> list[tuple[float, float, float]]:
    """Centres and radii of up to six things, apart and within the frame (fewer where they do not fit)."""
    count = rng.choice(7, p=[0.03, 0.22, 0.27, 0.2, 0.16, 0.08, 0.04])
    high = (12.0, 12.0, 10.0, 9.0, 8.5, 8.0, 7.5)[count]
    placed: list[tuple[float, float, float]] = []
    for _ in range(8 * count):
        radius = rng.uniform(5.4, high)
        x, y = rng.uniform(1.05 * radius, SIZE - 1.05 * radius, 2)
        if all(np.hypot(x - a, y - b) > 1.12 * (radius + r) + 1.5 for a, b, r in placed):
            placed.append((x, y, radius))
        if len(placed) == count:
            break
    return placed


def draw_thing(
    image: np.ndarray, x: float, y: float, radius: float, fault: str | None, sloppiness: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[Label]]:
    """The image with one more thing of random shape and colour around (x, y), and what to call it.

    ``fault`` is one of `FAULTS` or None; ``sloppiness`` in [0, 1] is how far a valid object strays from the renderer's.
    """
    shape, color = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLORS)))
    style = _Style(
        softness=1 + 1.2 * sloppiness * rng.uniform(),
        stretch=1.09 ** (sloppiness * rng.uniform(-1, 1)),
        wobble=0.05 * sloppiness * rng.uniform(),
        opacity=1 - 0.1 * sloppiness * rng.uniform(),
    )
    dx, dy = _PIXEL_X - x, _PIXEL_Y - y
    rgb = _jitter(_PALETTE[color], rng)
    if fault == "faded":
        style.opacity = rng.uniform(0.15, 0.62)
    elif fault == "soft":
        style.softness = radius * rng.uniform(0.9, 2.4)
    elif fault == "stretched":
        style.stretch = rng.uniform(1.4, 2.2) ** rng.choice([-1, 1])
    elif fault == "wobbly":
        style.wobble = rng.uniform(0.25, 0.5)
    elif fault == "speck":
        radius = rng.uniform(1.5, 4.0)
    elif fault == "tinted":
        rgb = _off_palette(rng)[:, None, None]
    elif fault == "patchy":
        rgb = _two_colors(color, dx, dy, radius, rng)

    if fault == "morph":
        distance = _morph(dx, dy, radius, rng)
    elif fault == "merged":
        turn, apart = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.8, 1.5)
        ox, oy = apart * np.cos(turn), apart * np.sin(turn)
        other = signed_distance(SHAPES[rng.integers(len(SHAPES))], dx - ox, dy - oy, radius * rng.uniform(0.7, 1.1))
        distance = np.minimum(signed_distance(SHAPES[shape], dx, dy, radius), other)
        if rng.uniform() < 0.5:
            rgb = np.where(other < 0, _jitter(_PALETTE[rng.integers(len(COLORS))], rng), rgb)
    else:
        distance = signed_distance(SHAPES[shape], *_warp(dx, dy, style, rng), radius)
        if fault in ("chopped", "bitten"):
            distance = np.maximum(distance, _cut(fault, dx, dy, radius, rng))
    coverage = style.opacity * np.clip(0.5 - distance / style.softness, 0, 1)
    drawn = (image * (1 - coverage) + rgb * coverage).astype(np.float32)
    if fault is None:
        return drawn, [Label(x, y, radius, shape, color)]
    if fault in ("tinted", "patchy"):
        return drawn, [Label(x, y, radius, shape, COLOR_CLASSES.index(OTHER))]
    weight = np.maximum(coverage, 1e-6)
    middle = [float((axis * weight).sum() / weight.sum()) for axis in (_PIXEL_X, _PIXEL_Y)]
    extent = 1.6 * radius if fault == "merged" else radius
    return drawn, [Label(*middle, extent, SHAPE_CLASSES.index(MALFORMED), -1)]


def _warp(dx, dy, style: _Style, rng):
    """Offsets stretched along an axis and with a wavy radius."""
    if style.stretch != 1.0:
        dx, dy = dx * style.stretch**0.5, dy / style.stretch**0.5
    if style.wobble:
        wave = 1 + style.wobble * np.sin(rng.choice([2, 3, 5]) * np.arctan2(dy, dx) + rng.uniform(0, 2 * np.pi))
        dx, dy = dx / wave, dy / wave
    return dx, dy


def _cut(fault: str, dx, dy, radius: float, rng):
    """Signed distance to what a straight cut, or a round bite at the rim, leaves over."""
    if fault == "chopped":  # toward a corner of the triangle: other cuts leave a smaller triangle
        turn = np.deg2rad(rng.choice([30, 150, 270]) + rng.uniform(-25, 25))
        return dx * np.cos(turn) + dy * np.sin(turn) - radius * rng.uniform(-0.3, 0.3)
    turn, away = rng.uniform(0, 2 * np.pi), radius * rng.uniform(0.6, 0.9)
    return radius * rng.uniform(0.5, 0.75) - np.hypot(dx - away * np.cos(turn), dy - away * np.sin(turn))


def _morph(dx, dy, radius: float, rng):
    """In between two shapes, where the blend resembles none of the four."""
    choices = _distinct_blends()
    a, b, t = choices[rng.integers(len(choices))]
    return (1 - t) * signed_distance(a, dx, dy, radius) + t * signed_distance(b, dx, dy, radius)


@functools.cache
def _distinct_blends() -> list[tuple[str, str, float]]:
    """Blends of two signed distances whose best overlap with any of the four shapes, at any radius, is below 0.85."""
    dx, dy = _PIXEL_X - SIZE / 2, _PIXEL_Y - SIZE / 2
    whole = [signed_distance(s, dx, dy, r) < 0 for s in SHAPES for r in np.arange(8.0, 24.0, 0.5)]
    out = []
    for (a, b), t in itertools.product(itertools.combinations(SHAPES, 2), (0.35, 0.5, 0.65)):
        blend = ((1 - t) * signed_distance(a, dx, dy, 16.0) + t * signed_distance(b, dx, dy, 16.0)) < 0
        if max((blend & w).sum() / (blend | w).sum() for w in whole) < 0.85:
            out.append((a, b, t))
    return out


def _jitter(rgb, rng) -> np.ndarray:
    return np.clip(rgb + rng.uniform(-0.06, 0.06, 3), 0, 1).astype(np.float32)[:, None, None]


def _off_palette(rng) -> np.ndarray:
    """A colour in between two of the palette, or any other, far from all four and darker than the backgrounds."""
    while True:
        if rng.uniform() < 0.6:
            a, b = _PALETTE[rng.permutation(len(_PALETTE))[:2]]
            rgb = a + (b - a) * rng.uniform(0.35, 0.65)
        else:
            rgb = rng.uniform(0, 0.9, 3)
        if np.linalg.norm(_PALETTE - rgb, axis=1).min() > 0.26 and rgb.min() < 0.55:
            return rgb.astype(np.float32)


def _two_colors(color: int, dx, dy, radius: float, rng) -> np.ndarray:
    """Two palette colours across a line through the middle of an object."""
    second = (color + rng.integers(1, len(COLORS))) % len(COLORS)
    turn = rng.uniform(0, 2 * np.pi)
    side = (dx * np.cos(turn) + dy * np.sin(turn)) / (radius * rng.uniform(0.1, 1.0)) + rng.uniform(-0.25, 0.25)
    mix = np.clip(0.5 + side, 0, 1)
    return _jitter(_PALETTE[color], rng) * (1 - mix) + _jitter(_PALETTE[second], rng) * mix


def _smooth(clouds: np.ndarray, width: int) -> np.ndarray:
    """Box blur with wrap-around: turns cells of noise into clouds."""
    for axis in (1, 2):
        total = np.cumsum(np.concatenate([clouds, clouds.take(range(width), axis=axis)], axis=axis), axis=axis)
        ends, starts = total.take(range(width, width + SIZE), axis=axis), total.take(range(SIZE), axis=axis)
        clouds = (ends - starts) / width
    return clouds
