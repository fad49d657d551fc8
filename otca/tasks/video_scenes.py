"""Scene grammar of `otca-video-v2`: the shapes and colours of `otca-image-v2`, moving.

A *spec* is what a prompt demands, as JSON: ``{"skill", "objects": [{"shape", "color", "course", "speed"}], "relation"}``; a
course names the headings of the clip's two halves; a colour, a course, a speed and the relation may be ``None`` (free). A
*clip* is one drawing of a spec: objects on their paths, a manner (from steady to shaky) and a finish (as of an image).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from otca.tasks import grammar, scenes
from otca.tasks.rendering import render
from otca.tasks.scenes import CELL, COLORS, SHAPES, SIZE, Scene, SceneObject
from otca.types import Prompt

NAME = "otca-video-v2"
"""Version of the task: grammar, base model, rewards, judge and protocol. A change of any is a new version."""

FRAMES = 9
"""Frames of a clip: one, and two groups of four, as the causal autoencoder takes them."""
FPS = 8
HALF = FRAMES // 2
"""The frame in which the first half of a course ends and the second begins."""

SKILLS = ("direction", "speed", "turning", "bouncing", "two_objects", "relation")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""Unit vectors, x to the right and y downward."""
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SPEEDS = {"slow": (1.5, 2.2), "fast": (3.6, 4.2)}
"""Pixels a frame; on the lattice 2 and 4, a half and a whole cell from one latent frame to the next."""
SPEED_BOUNDARY = 2.9
"""Pixels a frame; below is slow, above is fast."""
RELATIONS = {"following": (1, 1), "meeting": (1, -1), "parting": (-1, 1)}
"""Of object 0 to object 1: whether each heads along (1) or against (-1) the way from object 0 to object 1."""
SHAKE = 1.2
"""Pixels, in x and in y, that the shakiest clip is off its paths, to one side and the other in turn."""

_ADVERB = {"slow": "slowly", "fast": "quickly"}
_VERBS = ("moving", "going")


@dataclass(frozen=True)
class Clip:
    """One drawing of a spec: objects as they start, steady centres (N, FRAMES, 2) in pixels, ``steadiness`` and ``finish`` 0–1.

    ``style`` is that of `scenes.Scene`.
    """

    spec: dict
    objects: tuple[SceneObject, ...]
    center_NF2: np.ndarray
    steadiness: float = 1.0
    finish: float = 1.0
    style: float = 0.0

    def frame(self, index: int) -> Scene:
        """One frame as a still scene."""
        shake = (1 - self.steadiness) * SHAKE * (-1) ** index
        places = (self.center_NF2[:, index] + shake).tolist()
        moved = tuple(replace(o, x=x, y=y) for o, (x, y) in zip(self.objects, places))
        return Scene(self.spec, moved, self.style, self.finish)


# ---------------------------------------------------------------------------------------------------------------- specs


def all_specs(skill: str) -> list[dict]:
    """Every spec of one skill, in a fixed order. Raises ValueError for an unknown one."""

    def spec(objects, relation=None):
        objects = [{"shape": s, "color": c, "course": w and list(w), "speed": v} for s, c, w, v in objects]
        return {"skill": skill, "objects": objects, "relation": relation}

    looks = list(itertools.product(SHAPES, (None, *COLORS)))
    one_colored = [(None, None), *((c, None) for c in COLORS), *((None, c) for c in COLORS)]
    if skill == "direction":
        return [spec([(s, c, (d, d), None)]) for s, c in looks for d in DIRECTIONS]
    if skill == "speed":
        directed = [spec([(s, None, (d, d), v)]) for s in SHAPES for d in DIRECTIONS for v in SPEEDS]
        return directed + [spec([(s, c, None, v)]) for s in SHAPES for c in COLORS for v in SPEEDS]
    if skill == "turning":
        turns = [(d, e) for d, e in itertools.permutations(DIRECTIONS, 2) if e != OPPOSITE[d]]
        return [spec([(s, c, turn, None)]) for s, c in looks for turn in turns]
    if skill == "bouncing":
        return [spec([(s, c, (d, OPPOSITE[d]), None)]) for s, c in looks for d in DIRECTIONS]
    if skill == "two_objects":
        return [
            spec([(a, ca, (d, d), None), (b, cb, (e, e), None)])
            for a, b in itertools.combinations(SHAPES, 2)
            for ca, cb in one_colored
            for d, e in itertools.permutations(DIRECTIONS, 2)
        ]
    if skill == "relation":
        return [
            spec([(a, ca, None, None), (b, cb, None, None)], relation)
            for relation, pairs in zip(RELATIONS, (itertools.permutations, itertools.combinations, itertools.combinations))
            for a, b in pairs(SHAPES, 2)
            for ca, cb in one_colored
        ]
    raise ValueError(f"unknown skill {skill!r}; choose from {', '.join(SKILLS)}")


_STATED = (
    '{"skill", "objects": 1 or 2 of {"shape", "color", "course", "speed"}, "relation"}, '
    f"a skill of {', '.join(SKILLS)}, shapes of {', '.join(SHAPES)}, colours of {', '.join(COLORS)} or null, "
    f"a course of two of {', '.join(DIRECTIONS)} or null, a speed of {', '.join(SPEEDS)} or null, "
    f"a relation of two objects ({', '.join(RELATIONS)}) or null"
)


def check_spec(prompt: Prompt) -> None:
    """Raise InputError unless the prompt's spec is one that verifier and judge can read and `draw_clip` can draw."""
    grammar.check_spec(prompt, _is_stated, _STATED)


def _is_stated(spec: dict) -> bool:
    objects, relation = spec["objects"], spec["relation"]
    return (
        spec["skill"] in SKILLS
        and isinstance(objects, list)
        and 1 <= len(objects) <= 2
        and all(o["shape"] in SHAPES and o["color"] in (None, *COLORS) and o["speed"] in (None, *SPEEDS) for o in objects)
        and all(o["course"] is None or [d in DIRECTIONS for d in o["course"]] == [True, True] for o in objects)
        and all(o["course"] is None or o["speed"] is None or o["course"][0] == o["course"][1] for o in objects)
        and (relation is None or (relation in RELATIONS and len(objects) == 2 and not any(o["course"] for o in objects)))
    )


def split_specs(split: str) -> dict[str, list[dict]]:
    """Specs by skill of ``train``, ``validation`` or ``test``, disjoint (see `grammar.split_specs`)."""
    return grammar.split_specs({skill: all_specs(skill) for skill in SKILLS}, split, scenes.HELD_OUT)


def prompts(split: str, count: int, seed: int = 0) -> list[Prompt]:
    """``count`` prompts of a split, the six skills in turn (see `grammar.draw_prompts`)."""
    return grammar.draw_prompts(split_specs(split), captions, split, count, seed)


# ------------------------------------------------------------------------------------------------------------- captions


def captions(spec: dict) -> list[str]:
    """Every wording of a spec, in a fixed order (lower case, no punctuation)."""
    names = [scenes.noun(o) for o in spec["objects"]]
    if spec["relation"] == "following":
        return [f"{names[0]} following {names[1]}", f"{names[1]} leading {names[0]}"]
    if spec["relation"]:
        word = {"meeting": "meeting", "parting": "parting from"}[spec["relation"]]
        return [f"{a} {word} {b}" for a, b in (names, names[::-1])]
    out = []
    for verb in _VERBS:
        phrases = [" ".join([name, verb, *_manner(o)]) for name, o in zip(names, spec["objects"])]
        out += [" and ".join(order) for order in {tuple(phrases): 0, tuple(phrases[::-1]): 0}]
    return out


def _manner(o: dict) -> list[str]:
    first, second = o["course"] or (None, None)
    then = [] if first == second else ["and", "back"] if second == OPPOSITE[first] else ["then", second]
    return [*([first] if first else []), *then, *([_ADVERB[o["speed"]]] if o["speed"] else [])]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    return sorted({word for skill in SKILLS for spec in all_specs(skill) for text in captions(spec) for word in text.split()})


# ---------------------------------------------------------------------------------------------------------------- clips


def draw_clip(spec: dict, rng: np.random.Generator, lattice: bool = False) -> Clip:
    """One drawing that satisfies the spec and nothing but it: every object in the frame, none ever near another.

    On the ``lattice`` objects start at the centres of 16-pixel cells, with one radius, two speeds and the style of 0, as in
    the generator's training data; without, all are continuous.
    """
    count, relation = len(spec["objects"]), spec["relation"]
    path_NF2, ahead = _motions(spec, rng, lattice)
    radius = 6.0 if lattice else float(rng.uniform(5.6, 6.4 if relation else 7.5))
    low, high = (0.0, SIZE) if lattice else (1.2 * radius + SHAKE, SIZE - 1.2 * radius - SHAKE)
    while True:  # rejection sampling: a layout is found within a few dozen tries
        start_N2 = (rng.integers(0, SIZE // CELL, (count, 2)) + 0.5) * CELL if lattice else rng.uniform(low, high, (count, 2))
        if relation:  # one behind the other
            gap = CELL * rng.integers(1, SIZE // CELL) if lattice else rng.uniform(17, 46)
            start_N2[1] = start_N2[0] + gap * ahead
        center_NF2 = start_N2[:, None] + path_NF2
        if center_NF2.min() > low and center_NF2.max() < high and _apart(center_NF2, radius, lattice):
            break
    names = [o["color"] or str(rng.choice(list(COLORS))) for o in spec["objects"]]
    objects = tuple(
        SceneObject(o["shape"], color, float(x), float(y), radius, scenes.tint(color, rng, exact=lattice))
        for o, color, (x, y) in zip(spec["objects"], names, start_N2)
    )
    style = 0.0 if lattice else float(rng.uniform(-1, 1))
    return Clip(spec, objects, center_NF2, float(rng.uniform()), float(rng.uniform()), style)


def _motions(spec: dict, rng: np.random.Generator, lattice: bool) -> tuple[np.ndarray, np.ndarray]:
    """Displacements (N, FRAMES, 2) in pixels from the start, and the way from object 0 to a related object 1.

    Free courses and speeds are drawn; what turns is fast, what meets or parts is slow.
    """
    courses = [o["course"] or [str(rng.choice(list(DIRECTIONS)))] * 2 for o in spec["objects"]]
    speeds = [o["speed"] or str(rng.choice(list(SPEEDS))) for o in spec["objects"]]
    speeds = ["fast" if first != second else speed for (first, second), speed in zip(courses, speeds)]
    ahead, relation = courses[0][0], spec["relation"]
    if relation:
        courses = [[ahead if sign > 0 else OPPOSITE[ahead]] * 2 for sign in RELATIONS[relation]]
        speeds = [speeds[0] if relation == "following" else "slow"] * 2
    pixels = [{"slow": 2.0, "fast": 4.0}[name] if lattice else rng.uniform(*SPEEDS[name]) for name in speeds]
    if relation and not lattice:
        pixels = [rng.uniform(1.2, 3.2 if relation == "following" else 1.5)] * 2  # there is no room for more
    return np.stack([v * path(course) for v, course in zip(pixels, courses)]), np.array(DIRECTIONS[ahead])


def path(course: list[str]) -> np.ndarray:
    """Displacement (FRAMES, 2) of a course at one pixel a frame."""
    steps = [DIRECTIONS[course[0]]] * HALF + [DIRECTIONS[course[1]]] * HALF
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def _apart(center_NF2: np.ndarray, radius: float, lattice: bool) -> bool:
    """Whether no two objects are near each other; on the lattice, whether they share no cell of any latent frame."""
    if len(center_NF2) < 2:
        return True
    distance_F = np.hypot(*(center_NF2[1] - center_NF2[0]).T)
    if not lattice:
        return bool(distance_F.min() > 2.24 * radius + 3.0)
    cell_NL2 = center_NF2[:, ::HALF] / CELL - 0.5
    low_NL2, high_NL2 = np.floor(cell_NL2), np.ceil(cell_NL2)
    disjoint_L = ((high_NL2[0] < low_NL2[1]) | (high_NL2[1] < low_NL2[0])).any(1)
    return bool(disjoint_L.all() and distance_F.min() >= CELL - 0.1)


def render_clip(clip: Clip) -> np.ndarray:
    """Draw every frame: float32 ``(FRAMES, 3, SIZE, SIZE)`` in [0, 1]."""
    return np.stack([render(clip.frame(index)) for index in range(FRAMES)])


def change_one_attribute(clip: Clip, rng: np.random.Generator, lattice: bool = False) -> Clip:
    """A drawing that breaks its spec in exactly one attribute (a shape, a colour, a half of a course, a speed, the relation)."""
    stated = attributes(clip.spec)
    return replace(draw_clip(broken(clip.spec, stated[rng.integers(len(stated))], rng), rng, lattice), spec=clip.spec)


def attributes(spec: dict) -> list[tuple[str, int]]:
    """What a spec states, as (kind, index): each object's shape, colour, course and speed, and the relation."""
    kinds = [(kind, i) for i, o in enumerate(spec["objects"]) for kind in ("shape", "color", "course", "speed") if o[kind]]
    return kinds + [("relation", 0)] * (spec["relation"] is not None)


def broken(spec: dict, attribute: tuple[str, int], rng: np.random.Generator) -> dict:
    """The spec with one of its `attributes` changed to a wrong value."""
    kind, i = attribute
    objects = [dict(o) for o in spec["objects"]]
    out, target = spec | {"objects": objects}, objects[i]
    if kind == "relation":
        return _broken_relation(out, rng)
    if kind == "course":
        target["course"] = _other_course(target["course"], target["speed"], rng)
    else:
        values = {"shape": SHAPES, "color": tuple(COLORS), "speed": tuple(SPEEDS)}[kind]
        taken = {o[kind] for o in objects} if kind == "shape" else {target[kind]}
        target[kind] = str(rng.choice([v for v in values if v not in taken]))
    return out


def _other_course(course: list[str], speed: str | None, rng: np.random.Generator) -> list[str]:
    """One half heads elsewhere; all of a straight course does, at times (always, where its speed is stated)."""
    wrong = str(rng.choice([d for d in DIRECTIONS if d not in course]))
    if course[0] == course[1] and (speed or rng.uniform() < 0.7):
        return [wrong, wrong]
    return [wrong, course[1]] if rng.uniform() < 0.5 else [course[0], wrong]


def _broken_relation(spec: dict, rng: np.random.Generator) -> dict:
    wrong = str(rng.choice([r for r in RELATIONS if r != spec["relation"]]))
    if spec["relation"] == "following" and rng.uniform() < 0.5:
        return spec | {"objects": spec["objects"][::-1]}
    return spec | {"relation": wrong}
