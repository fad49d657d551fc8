"""Scene grammar of the embedded image task: GenEval's six skills on six shapes and six colours.

A *spec* is what a prompt demands, as JSON: ``{"skill", "objects": [{"shape", "color"}], "relation"}``; a colour may be
``None`` (free). A *scene* is one drawing of a spec: every object has a colour, a centre and a radius. Captions word the
same spec in many ways. Splits are disjoint by spec, so a test prompt is never a rewording of a training prompt.

Skills and their names follow GenEval (Ghosh et al. 2023): single_object, two_objects, counting, colors, position,
color_attr.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from otca.tasks import grammar
from otca.types import Prompt

SIZE = 64
"""Side of an image in pixels."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLORS = {
    "red": (0.86, 0.15, 0.15),
    "yellow": (0.96, 0.78, 0.10),
    "green": (0.13, 0.62, 0.24),
    "blue": (0.15, 0.32, 0.86),
    "purple": (0.56, 0.20, 0.70),
    "black": (0.09, 0.09, 0.10),
}
SKILLS = ("single_object", "two_objects", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "above")
"""Canonical relations of object 0 to object 1; captions also use their converses."""

_NUMBER_WORD = {2: "two", 3: "three", 4: "four"}
_PLURAL = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
_CONVERSE = {"left of": "right of", "above": "below"}
_OPENINGS = ("", "a photo of ", "a picture of ", "an image of ", "a drawing of ", "there is ")
_MIN_GAP = 3.0
LATTICE = 8.0
"""Pixels of the lattice on which the generator's training scenes lie (one cell of the latent grid)."""

_POSITION_MARGIN = 6.0
"""Pixels by which the stated axis must separate two centres, and by which it must exceed the other axis."""


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


# ---------------------------------------------------------------------------------------------------------------- specs


def all_specs(skill: str) -> list[dict]:
    """Every spec of one skill, in a fixed order."""

    def spec(objects, relation=None):
        return {"skill": skill, "objects": [{"shape": s, "color": c} for s, c in objects], "relation": relation}

    pairs = list(itertools.combinations(SHAPES, 2))
    if skill == "single_object":
        return [spec([(shape, None)]) for shape in SHAPES]
    if skill == "two_objects":
        return [spec([(a, None), (b, None)]) for a, b in pairs]
    if skill == "counting":
        return [spec([(shape, None)] * n) for shape in SHAPES for n in (2, 3, 4)]
    if skill == "colors":
        return [spec([(shape, color)]) for shape in SHAPES for color in COLORS]
    if skill == "position":
        ordered = itertools.permutations(SHAPES, 2)
        return [spec([(a, None), (b, None)], relation) for a, b in ordered for relation in RELATIONS]
    if skill == "color_attr":
        tints = list(itertools.permutations(COLORS, 2))
        return [spec([(a, ca), (b, cb)]) for a, b in pairs for ca, cb in tints]
    raise ValueError(f"unknown skill {skill!r}; choose from {', '.join(SKILLS)}")


_STATED = (
    '{"skill", "objects": 1 to 4 of {"shape", "color"}, "relation"}, '
    f"a skill of {', '.join(SKILLS)}, shapes of {', '.join(SHAPES)}, colours of {', '.join(COLORS)} or null, "
    f"a relation of two objects ({', '.join(RELATIONS)}) or null"
)


def check_spec(prompt: Prompt) -> None:
    """Raise InputError unless the prompt's spec is one that verifier and judge can read and `draw_scene` can draw."""
    grammar.check_spec(prompt, _is_stated, _STATED)


def _is_stated(spec: dict) -> bool:
    objects, relation = spec["objects"], spec["relation"]
    return (
        spec["skill"] in SKILLS
        and isinstance(objects, list)
        and 1 <= len(objects) <= 4
        and all(o["shape"] in SHAPES and o["color"] in (None, *COLORS) for o in objects)
        and (relation is None or (relation in RELATIONS and len(objects) == 2))
    )


def split_specs(split: str) -> dict[str, list[dict]]:
    """Specs by skill of ``train``, ``validation`` or ``test``, disjoint (see `grammar.split_specs`)."""
    return grammar.split_specs({skill: all_specs(skill) for skill in SKILLS}, split)


# ------------------------------------------------------------------------------------------------------------- captions


def captions(spec: dict) -> list[str]:
    """Every wording of a spec, in a fixed order (lower case, no punctuation)."""
    objects, skill = spec["objects"], spec["skill"]
    if skill == "counting":
        phrase = f"{_NUMBER_WORD[len(objects)]} {_PLURAL[objects[0]['shape']]}"
        bodies = [phrase, f"{phrase} together", f"exactly {phrase}"]
        return [opening + body for opening in _OPENINGS[:5] for body in bodies] + [f"there are {phrase}"]
    names = [_noun(o) for o in objects]
    if skill in ("single_object", "colors"):
        bodies = [names[0], f"one {names[0][2:]}"]
    elif skill == "position":
        relation = spec["relation"]
        bodies = [f"{names[0]} {_adverb(relation)} {names[1]}", f"{names[1]} {_adverb(_CONVERSE[relation])} {names[0]}"]
    else:
        bodies = [f"{a} {link} {b}" for a, b in (names, names[::-1]) for link in ("and", "with", "next to")]
    return [opening + body for opening in _OPENINGS for body in bodies]


def _noun(obj: dict) -> str:
    return f"a {obj['color']} {obj['shape']}" if obj["color"] else f"a {obj['shape']}"


def _adverb(relation: str) -> str:
    return f"to the {relation}" if relation.endswith("of") else relation


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    return sorted({word for skill in SKILLS for spec in all_specs(skill) for text in captions(spec) for word in text.split()})


def prompts(split: str, count: int, seed: int = 0) -> list[Prompt]:
    """``count`` prompts of a split, the six skills in turn (see `grammar.draw_prompts`)."""
    return grammar.draw_prompts(split_specs(split), captions, split, count, seed)


# --------------------------------------------------------------------------------------------------------------- scenes


def draw_scene(spec: dict, rng: np.random.Generator, lattice: float = 0.0) -> Scene:
    """One drawing that satisfies the spec and nothing but it: separated objects, free colours drawn at random.

    With a ``lattice`` (pixels), centres lie on its multiples and radii take two values, as in the generator's training
    data; without, both are continuous, as in what judges and autoencoder are trained and tested on.
    """
    count = len(spec["objects"])
    low, high = {1: (11.0, 18.0), 2: (8.5, 13.5), 3: (7.5, 10.5), 4: (7.0, 9.5)}[count]
    colors = _scene_colors(spec, rng)
    while True:  # rejection sampling: a layout is found within a few dozen tries
        radii = low + (high - low) * rng.choice([0.3, 0.8], count) if lattice else rng.uniform(low, high, count)
        centers = np.stack([rng.uniform(1.2 * r + 1, SIZE - 1.2 * r - 1, 2) for r in radii])
        if lattice:
            centers = np.round(centers / lattice) * lattice
        if _inside(centers, radii) and _separated(centers, radii) and _relation_holds(spec["relation"], centers):
            break
    objects = tuple(
        SceneObject(o["shape"], color, float(x), float(y), float(r), _jitter(COLORS[color], rng))
        for o, color, (x, y), r in zip(spec["objects"], colors, centers, radii)
    )
    return Scene(spec=spec, objects=objects, background=random_backdrop(rng))


def _scene_colors(spec: dict, rng) -> list[str]:
    """Given colours stay; free ones are drawn, one for all objects of a counting scene."""
    names = list(COLORS)
    if spec["skill"] == "counting":
        return [names[rng.integers(len(names))]] * len(spec["objects"])
    return [o["color"] or names[rng.integers(len(names))] for o in spec["objects"]]


def _inside(centers, radii) -> bool:
    return bool((np.minimum(centers, SIZE - centers) >= 1.2 * radii[:, None]).all())


def _separated(centers, radii) -> bool:
    return all(
        np.hypot(*(centers[i] - centers[j])) > 1.12 * (radii[i] + radii[j]) + _MIN_GAP
        for i, j in itertools.combinations(range(len(radii)), 2)
    )


def _relation_holds(relation: str | None, centers) -> bool:
    if relation is None:
        return True
    dx, dy = centers[1] - centers[0]
    along, across = (dx, dy) if relation == "left of" else (dy, dx)
    return along > abs(across) + _POSITION_MARGIN


def _jitter(rgb, rng):
    return tuple(float(v) for v in np.clip(np.asarray(rgb) + rng.uniform(-0.04, 0.04, 3), 0, 1))


def random_backdrop(rng: np.random.Generator):
    """A light tint of random hue, a little darker or lighter toward the bottom."""
    hue, saturation, value = rng.uniform(0, 1), rng.uniform(0.0, 0.22), rng.uniform(0.84, 0.98)
    phase = 2 * np.pi * (hue - np.array([0, 1 / 3, 2 / 3]))
    top = value * (1 - saturation * (0.5 - 0.5 * np.cos(phase)))
    bottom = top + rng.uniform(-0.06, 0.06)
    return tuple(tuple(float(v) for v in np.clip(c, 0, 1)) for c in (top, bottom))


# ------------------------------------------------------------------------------------------------------------ rendering


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


def random_examples(split: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str], list[Scene]]:
    """Rendered training pairs, skills drawn evenly: images ``(count, 3, SIZE, SIZE)``, captions, scenes."""
    pools = split_specs(split)
    scenes, texts = [], []
    for _ in range(count):
        specs = pools[SKILLS[rng.integers(len(SKILLS))]]
        spec = specs[rng.integers(len(specs))]
        wordings = captions(spec)
        scenes.append(draw_scene(spec, rng))
        texts.append(wordings[rng.integers(len(wordings))])
    return np.stack([render(scene) for scene in scenes]), texts, scenes


def change_one_attribute(scene: Scene, rng: np.random.Generator) -> Scene:
    """A drawing that breaks its spec in exactly one attribute (a shape, a stated colour, the count or the relation)."""
    spec = scene.spec
    wrong = {"skill": spec["skill"], "objects": [dict(o) for o in spec["objects"]], "relation": spec["relation"]}
    kinds = ["shape"] + ["color"] * any(o["color"] for o in spec["objects"])
    kinds += ["count"] * (spec["skill"] == "counting") + ["relation"] * (spec["relation"] is not None)
    kind = kinds[rng.integers(len(kinds))]
    target = wrong["objects"][rng.integers(len(wrong["objects"]))]
    used = {o["shape"] for o in spec["objects"]}
    if kind == "shape":
        target["shape"] = rng.choice([s for s in SHAPES if s not in used])
    elif kind == "color":
        stated = {o["color"] for o in spec["objects"]}
        target["color"] = rng.choice([c for c in COLORS if c not in stated])
    elif kind == "count":
        n = len(spec["objects"])
        wrong["objects"] = [dict(spec["objects"][0])] * int(rng.choice([m for m in (1, 2, 3, 4) if m != n]))
    else:
        wrong["objects"] = wrong["objects"][::-1]
    drawn = draw_scene(wrong, rng)
    return Scene(spec=spec, objects=drawn.objects, background=drawn.background)
