"""Scene grammar of `otca-image-v2`: GenEval's six skills on four shapes and four colours.

A *spec* is what a prompt demands, as JSON: ``{"skill", "objects": [{"shape", "color"}], "relation", "place"}``; a colour,
the relation and the place may be ``None`` (free). A *scene* is one drawing of a spec: every object has a colour, a centre
and a radius, and the whole picture has a style (its backdrop, from cool and even to a warm glow) and a finish (from crisp
to soft and grainy). Captions word the same spec in several ways. Splits are disjoint by spec, so a test prompt is never a
rewording of a training prompt.

Skills and their names follow GenEval (Ghosh et al. 2023): single_object, two_objects, counting, colors, position,
color_attr. Two differ: a single object has a place in the picture, and colours may be stated in every skill, so that each
has at least twelve held-out specs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from otca.tasks import grammar
from otca.types import Prompt

NAME = "otca-image-v2"
"""Version of the task: grammar, base model, rewards, judge and protocol. A change of any is a new version."""

SIZE = 64
"""Side of an image in pixels."""
CELL = 16
"""Pixels of the lattice on which the generator's training scenes lie (one cell of the latent grid)."""

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {"red": (0.86, 0.15, 0.15), "yellow": (0.96, 0.78, 0.10), "green": (0.13, 0.62, 0.24), "blue": (0.15, 0.32, 0.86)}
SKILLS = ("single_object", "two_objects", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "above")
"""Canonical relations of object 0 to object 1; captions also use their converses."""
SIDES = ("left", "right", "top", "bottom")
PLACES = (*SIDES, "top left", "top right", "bottom left", "bottom right")
"""Halves and quarters of the picture in which a single object can be asked for."""
COUNTS = (2, 3)
HELD_OUT = 12
"""Fewest specs of each skill in the test split."""

_NUMBER_WORD = {2: "two", 3: "three"}
_PLURAL = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
_CONVERSE = {"left of": "right of", "above": "below"}
_MIN_GAP = 3.0
_POSITION_MARGIN = 6.0
"""Pixels by which the stated axis must separate two centres, and by which it must exceed the other axis."""
_PLACE_MARGIN = 4.0
"""Pixels that a placed object's centre keeps from the middle line."""

_COOL = np.array([(0.87, 0.90, 0.96), (0.85, 0.89, 0.96)])
_WARM = np.array([(0.99, 0.94, 0.82), (0.99, 0.73, 0.50)])


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
    """One drawing of a spec: objects, ``style`` from −1 (cool, even backdrop) to 1 (warm glow), ``finish`` from 0 to 1."""

    spec: dict
    objects: tuple[SceneObject, ...]
    style: float = 0.0
    finish: float = 1.0

    @property
    def background(self) -> np.ndarray:
        """RGB at the top and the bottom of the backdrop, (2, 3) in [0, 1]."""
        return _COOL + (self.style + 1) / 2 * (_WARM - _COOL)


# ---------------------------------------------------------------------------------------------------------------- specs


def all_specs(skill: str) -> list[dict]:
    """Every spec of one skill, in a fixed order."""

    def spec(objects, relation=None, place=None):
        objects = [{"shape": s, "color": c} for s, c in objects]
        return {"skill": skill, "objects": objects, "relation": relation, "place": place}

    pairs = list(itertools.combinations(SHAPES, 2))
    one_colored = [(None, None), *((c, None) for c in COLORS), *((None, c) for c in COLORS)]
    if skill == "single_object":
        return [spec([(shape, None)], place=place) for shape in SHAPES for place in PLACES]
    if skill == "two_objects":
        return [spec([(a, ca), (b, cb)]) for a, b in pairs for ca, cb in one_colored]
    if skill == "counting":
        return [spec([(shape, color)] * n) for shape in SHAPES for color in (None, *COLORS) for n in COUNTS]
    if skill == "colors":
        return [spec([(shape, color)], place=place) for shape in SHAPES for color in COLORS for place in (None, *SIDES)]
    if skill == "position":
        ordered = itertools.permutations(SHAPES, 2)
        return [spec([(a, ca), (b, cb)], relation) for a, b in ordered for ca, cb in one_colored for relation in RELATIONS]
    if skill == "color_attr":
        tints = list(itertools.product(COLORS, repeat=2))
        return [spec([(a, ca), (b, cb)]) for a, b in pairs for ca, cb in tints]
    raise ValueError(f"unknown skill {skill!r}; choose from {', '.join(SKILLS)}")


_STATED = (
    '{"skill", "objects": 1 to 3 of {"shape", "color"}, "relation", "place"}, '
    f"a skill of {', '.join(SKILLS)}, shapes of {', '.join(SHAPES)}, colours of {', '.join(COLORS)} or null, "
    f"a relation of two objects ({', '.join(RELATIONS)}) or null, a place of one object ({', '.join(PLACES)}) or null"
)


def check_spec(prompt: Prompt) -> None:
    """Raise InputError unless the prompt's spec is one that verifier and judge can read and `draw_scene` can draw."""
    grammar.check_spec(prompt, _is_stated, _STATED)


def _is_stated(spec: dict) -> bool:
    objects, relation, place = spec["objects"], spec["relation"], spec["place"]
    return (
        spec["skill"] in SKILLS
        and isinstance(objects, list)
        and 1 <= len(objects) <= max(COUNTS)
        and all(o["shape"] in SHAPES and o["color"] in (None, *COLORS) for o in objects)
        and (relation is None or (relation in RELATIONS and len(objects) == 2))
        and (place is None or (place in PLACES and len(objects) == 1))
    )


def split_specs(split: str) -> dict[str, list[dict]]:
    """Specs by skill of ``train``, ``validation`` or ``test``, disjoint (see `grammar.split_specs`)."""
    return grammar.split_specs({skill: all_specs(skill) for skill in SKILLS}, split, HELD_OUT)


# ------------------------------------------------------------------------------------------------------------- captions


def captions(spec: dict) -> list[str]:
    """Every wording of a spec, in a fixed order (lower case, no punctuation)."""
    objects, skill = spec["objects"], spec["skill"]
    names = [noun(o) for o in objects]
    if skill == "counting":
        color, shape = objects[0]["color"], objects[0]["shape"]
        phrase = " ".join([_NUMBER_WORD[len(objects)], *([color] if color else []), _PLURAL[shape]])
        bodies = [phrase, f"exactly {phrase}"]
    elif skill in ("single_object", "colors"):
        bodies = [names[0] + _placed(spec["place"])]
    elif skill == "position":
        relation = spec["relation"]
        bodies = [f"{names[0]} {relation} {names[1]}", f"{names[1]} {_CONVERSE[relation]} {names[0]}"]
    else:
        bodies = [f"{a} {link} {b}" for a, b in (names, names[::-1]) for link in ("and", "with")]
    return bodies


def noun(obj: dict) -> str:
    return f"a {obj['color']} {obj['shape']}" if obj["color"] else f"a {obj['shape']}"


def _placed(place: str | None) -> str:
    if place is None:
        return ""
    return f" on the {place}" if place in ("left", "right") else f" at the {place}"


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    return sorted({word for skill in SKILLS for spec in all_specs(skill) for text in captions(spec) for word in text.split()})


def prompts(split: str, count: int, seed: int = 0) -> list[Prompt]:
    """``count`` prompts of a split, the six skills in turn (see `grammar.draw_prompts`)."""
    return grammar.draw_prompts(split_specs(split), captions, split, count, seed)


# --------------------------------------------------------------------------------------------------------------- scenes


def draw_scene(spec: dict, rng: np.random.Generator, lattice: bool = False) -> Scene:
    """One drawing that satisfies the spec and nothing but it: separated objects, free attributes drawn at random.

    On the ``lattice`` centres are those of 16-pixel cells and radii take two values, as in the generator's training data;
    without, both are continuous, as in what the judge is trained and tested on.
    """
    count = len(spec["objects"])
    low, high = (6.0, 7.4) if lattice else (5.6, 9.5 if count == 1 else 8.0)
    colors = _scene_colors(spec, rng)
    while True:  # rejection sampling: a layout is found within a few dozen tries
        radii = rng.choice([low, high], count) if lattice else rng.uniform(low, high, count)
        if lattice:
            centers = (rng.integers(0, SIZE // CELL, (count, 2)) + 0.5) * CELL
        else:
            centers = np.stack([rng.uniform(1.1 * r, SIZE - 1.1 * r, 2) for r in radii])
        if (
            _separated(centers, radii)
            and _relation_holds(spec["relation"], centers)
            and in_place(spec["place"], *centers[0], margin=_PLACE_MARGIN)
        ):
            break
    objects = tuple(
        SceneObject(o["shape"], color, float(x), float(y), float(r), tint(color, rng, lattice))
        for o, color, (x, y), r in zip(spec["objects"], colors, centers, radii)
    )
    return Scene(spec, objects, style=float(rng.uniform(-1, 1)), finish=float(rng.uniform(0, 1)))


def _scene_colors(spec: dict, rng) -> list[str]:
    """Given colours stay; free ones are drawn, one for all objects of a counting scene."""
    names = list(COLORS)
    if spec["skill"] == "counting":
        return [spec["objects"][0]["color"] or names[rng.integers(len(names))]] * len(spec["objects"])
    return [o["color"] or names[rng.integers(len(names))] for o in spec["objects"]]


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


def in_place(place: str | None, x: float, y: float, margin: float = 0.0) -> bool:
    """Whether a centre in pixels lies in the stated half or quarter, ``margin`` pixels from its middle lines."""
    offsets = {"left": SIZE / 2 - x, "right": x - SIZE / 2, "top": SIZE / 2 - y, "bottom": y - SIZE / 2}
    return all(offsets[side] > margin for side in (place or "").split())


def tint(color: str, rng: np.random.Generator, exact: bool = False) -> tuple[float, float, float]:
    """RGB of a palette colour, jittered unless it is to be exact."""
    jitter = 0.0 if exact else rng.uniform(-0.04, 0.04, 3)
    return tuple(float(v) for v in np.clip(np.asarray(COLORS[color]) + jitter, 0, 1))


# -------------------------------------------------------------------------------------------------------- wrong drawings


def change_one_attribute(scene: Scene, rng: np.random.Generator, lattice: bool = False) -> Scene:
    """A drawing that breaks its spec in exactly one attribute (a shape, a stated colour, the count, the relation, the place)."""
    spec = scene.spec
    drawn = draw_scene(broken(spec, attributes(spec)[rng.integers(len(attributes(spec)))], rng), rng, lattice)
    return replace(drawn, spec=spec)


def attributes(spec: dict) -> list[tuple[str, int]]:
    """What a spec states, as (kind, index): each object's shape and colour, the count, the relation, the sides of a place."""
    if spec["skill"] == "counting":
        return [("count", 0), ("shapes", 0)] + [("colors", 0)] * (spec["objects"][0]["color"] is not None)
    out = [("shape", i) for i in range(len(spec["objects"]))]
    out += [("color", i) for i, o in enumerate(spec["objects"]) if o["color"]]
    out += [("relation", 0)] * (spec["relation"] is not None)
    return out + [("place", i) for i in range(len((spec["place"] or "").split()))]


_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def broken(spec: dict, attribute: tuple[str, int], rng: np.random.Generator) -> dict:
    """The spec with one of its `attributes` changed to a wrong value."""
    kind, i = attribute
    objects = [dict(o) for o in spec["objects"]]
    out = spec | {"objects": objects}
    if kind in ("shape", "shapes"):
        others = [s for s in SHAPES if s not in {o["shape"] for o in objects}]
        wrong = str(rng.choice(others))
        for o in objects if kind == "shapes" else [objects[i]]:
            o["shape"] = wrong
    elif kind in ("color", "colors"):
        wrong = str(rng.choice([c for c in COLORS if c != objects[i]["color"]]))
        for o in objects if kind == "colors" else [objects[i]]:
            o["color"] = wrong
    elif kind == "count":
        out["objects"] = [dict(objects[0])] * int(rng.choice([n for n in (1, 2, 3) if n != len(objects)]))
    elif kind == "relation":
        out["objects"] = objects[::-1]
    else:
        sides = spec["place"].split()
        sides[i] = _OPPOSITE[sides[i]]
        out["place"] = " ".join(sides)
    return out
