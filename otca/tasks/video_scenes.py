"""Scene grammar of the embedded video task: four shapes in four colours that move, turn, stop, bounce, grow and shrink.

A *spec* is what a prompt demands, as JSON: ``{"skill", "objects": [{"shape", "color", "motion"}]}`` with a motion
``{"kind", "direction", "then", "speed"}`` (``None`` where it does not apply or is free). A *clip* is one drawing of a spec:
every object has a colour and, frame by frame, a centre and a radius. Splits are disjoint by spec.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from otca.tasks import grammar, video_frames
from otca.tasks.video_frames import SIZE, Scene, SceneObject
from otca.types import Prompt

NAME = "otca-video-v1"
"""Version of the task; version 2 replaces it next."""

FRAMES = 9
"""Frames of a clip: one, and two groups of four, as the causal autoencoder takes them."""
FPS = 8

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {name: video_frames.COLORS[name] for name in ("red", "yellow", "green", "blue")}
SKILLS = ("direction", "speed", "stop_and_go", "turning", "bouncing", "scale", "two_objects")

_HALF = float(np.sqrt(0.5))
DIRECTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "left": (-1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "upper right": (_HALF, -_HALF),
    "upper left": (-_HALF, -_HALF),
    "lower right": (_HALF, _HALF),
    "lower left": (-_HALF, _HALF),
}
"""Unit vectors, x to the right and y downward."""
STRAIGHT = ("right", "left", "up", "down")
OPPOSITE = {"right": "left", "left": "right", "up": "down", "down": "up"}
OPPOSITE |= {"upper right": "lower left", "lower left": "upper right", "upper left": "lower right", "lower right": "upper left"}

SPEED_RANGE = {"slow": (1.2, 1.9), "fast": (3.2, 4.0)}
"""Pixels a frame."""
SPEED_BOUNDARY = 2.5
"""Pixels a frame; below is slow, above is fast."""
PAIR_SPEED = (1.6, 3.0)
GROWTH = (1.8, 2.2)
"""Ratio of the larger to the smaller radius of an object that grows or shrinks."""

_FIRST_HALF = np.array([1, 1, 1, 1, 0, 0, 0, 0.0])
PROFILES = {
    "move": np.ones(8),
    "stop_and_go": np.array([1, 1, 1, 0, 0, 1, 1, 1.0]),
    "turn": _FIRST_HALF,
    "bounce": _FIRST_HALF - _FIRST_HALF[::-1],
    "grow": np.zeros(8),
    "shrink": np.zeros(8),
}
"""Speed along ``direction`` over the eight intervals, in units of the object's speed; a turn goes on along ``then``."""


@dataclass(frozen=True)
class Mover:
    """One moving object: centre (F, 2) in pixels (x, y), radius (F,) in pixels, colour as RGB in [0, 1]."""

    shape: str
    color: str
    rgb: tuple[float, float, float]
    center_F2: np.ndarray
    radius_F: np.ndarray


@dataclass(frozen=True)
class Clip:
    """One drawing of a spec: moving objects over a still vertical gradient (RGB of top and bottom, in [0, 1])."""

    spec: dict
    objects: tuple[Mover, ...]
    background: tuple[tuple[float, float, float], tuple[float, float, float]]


# ---------------------------------------------------------------------------------------------------------------- specs


def motion(kind: str, direction: str | None = None, then: str | None = None, speed: str | None = None) -> dict:
    """One object's motion, as specs hold it."""
    return {"kind": kind, "direction": direction, "then": then, "speed": speed}


MOTIONS = {
    "direction": [motion("move", d) for d in DIRECTIONS],
    "speed": [motion("move", d, speed=speed) for d in STRAIGHT for speed in SPEED_RANGE],
    "stop_and_go": [motion("stop_and_go", d) for d in STRAIGHT],
    "turning": [motion("turn", d, then) for d in STRAIGHT for then in STRAIGHT if then not in (d, OPPOSITE[d])],
    "bouncing": [motion("bounce", d) for d in STRAIGHT],
    "scale": [motion("grow"), motion("shrink")],
}
"""Motions by skill; two objects have those of "direction"."""


def all_specs(skill: str) -> list[dict]:
    """Every spec of one skill, in a fixed order. Raises ValueError for an unknown one."""
    kinds = list(itertools.product(SHAPES, COLORS))
    if skill in MOTIONS:
        return [
            {"skill": skill, "objects": [{"shape": shape, "color": color, "motion": m}]}
            for (shape, color), m in itertools.product(kinds, MOTIONS[skill])
        ]
    if skill == "two_objects":
        return [
            {
                "skill": skill,
                "objects": [
                    {"shape": a, "color": first, "motion": motion("move", one)},
                    {"shape": b, "color": second, "motion": motion("move", other)},
                ],
            }
            for a, b in itertools.combinations(SHAPES, 2)
            for first, second in itertools.permutations(COLORS, 2)
            for one, other in itertools.permutations(STRAIGHT, 2)
        ]
    raise ValueError(f"unknown skill {skill!r}; choose from {', '.join(SKILLS)}")


_STATED = (
    '{"skill", "objects": 1 or 2 of {"shape", "color", "motion"}}, '
    f"a skill of {', '.join(SKILLS)}, shapes of {', '.join(SHAPES)}, colours of {', '.join(COLORS)}, "
    "motions as otca.tasks.video_scenes.MOTIONS lists them"
)


def check_spec(prompt: Prompt) -> None:
    """Raise InputError unless the prompt's spec is one that verifier and judge can read and `draw_clip` can draw."""
    grammar.check_spec(prompt, _is_stated, _STATED)


def _is_stated(spec: dict) -> bool:
    objects = spec["objects"]
    return (
        spec["skill"] in SKILLS
        and isinstance(objects, list)
        and 1 <= len(objects) <= 2
        and all(o["shape"] in SHAPES and o["color"] in tuple(COLORS) for o in objects)
        and all(any(o["motion"] in motions for motions in MOTIONS.values()) for o in objects)
    )


def split_specs(split: str) -> dict[str, list[dict]]:
    """Specs by skill of ``train``, ``validation`` or ``test``, disjoint (see `grammar.split_specs`)."""
    return grammar.split_specs({skill: all_specs(skill) for skill in SKILLS}, split)


def prompts(split: str, count: int, seed: int = 0) -> list[Prompt]:
    """``count`` prompts of a split, the seven skills in turn (see `grammar.draw_prompts`)."""
    return grammar.draw_prompts(split_specs(split), captions, split, count, seed)


# ------------------------------------------------------------------------------------------------------------- captions

_OPENINGS = ("", "a video of ", "a clip of ")
_VERBS = ("moving", "gliding", "going")


def captions(spec: dict) -> list[str]:
    """Every wording of a spec, in a fixed order (lower case, no punctuation)."""
    phrases = [[f"a {o['color']} {o['shape']} {doing}" for doing in _doings(o["motion"])] for o in spec["objects"]]
    if len(phrases) == 1:
        bodies = phrases[0]
    else:
        bodies = [f"{a} and {b}" for first, second in (phrases, phrases[::-1]) for a, b in zip(first, second)]
    return [opening + body for opening in _OPENINGS for body in bodies]


def _doings(m: dict) -> list[str]:
    """What an object does, in several wordings."""
    kind, where = m["kind"], _where(m["direction"]) if m["direction"] else []
    if kind == "move":
        manner = {None: [""], "slow": [" slowly"], "fast": [" quickly", " fast"]}[m["speed"]]
        return [f"{verb}{how} {to}" for verb in _VERBS for how in manner for to in where]
    if kind == "stop_and_go":
        return [f"{verb} {to} with a stop" for verb in _VERBS for to in where] + [f"stopping on its way {to}" for to in where]
    if kind == "turn":
        return [f"{verb} {m['direction']} then {turning}{m['then']}" for verb in _VERBS for turning in ("", "turning ")]
    if kind == "bounce":
        return [f"{verb} {to} and bouncing back" for verb in _VERBS for to in where] + [f"going {to} and back" for to in where]
    return {"grow": ["growing", "getting bigger"], "shrink": ["shrinking", "getting smaller"]}[kind]


def _where(direction: str) -> list[str]:
    """Two wordings of a direction."""
    if direction in ("up", "down"):
        return [direction, f"{direction}ward"]
    return [f"to the {direction}", f"toward the {direction}"]


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    return sorted({word for skill in SKILLS for spec in all_specs(skill) for text in captions(spec) for word in text.split()})


# ---------------------------------------------------------------------------------------------------------------- clips


def draw_clip(spec: dict, rng: np.random.Generator, lattice: float = 0.0) -> Clip:
    """One drawing that satisfies the spec and nothing but it: every object in the frame, none ever near another.

    With a ``lattice`` (pixels), the first centres lie on its multiples, and speeds, radii and growth take two values, as in
    the generator's training data; without, all are continuous, as in what judges and autoencoder are trained and tested on.
    """
    while True:  # rejection sampling: a layout is found within a few dozen tries
        movers = [_mover(wanted, len(spec["objects"]), rng, lattice) for wanted in spec["objects"]]
        if all(_inside(mover) for mover in movers) and _apart(movers):
            return Clip(spec=spec, objects=tuple(movers), background=video_frames.random_backdrop(rng))


def _mover(wanted: dict, count: int, rng: np.random.Generator, lattice: float) -> Mover:
    m = wanted["motion"]

    def draw(low: float, high: float) -> float:
        return low + (high - low) * (float(rng.choice([0.3, 0.8])) if lattice else float(rng.uniform()))

    start = rng.uniform(6, SIZE - 6, 2)
    if lattice:
        start = np.round(start / lattice) * lattice
    center_F2 = start + path(m, draw(*_speed_range(m, count, rng)))
    if m["kind"] in ("grow", "shrink"):
        radius_F = draw(6.5, 8.0) * np.linspace(1.0, draw(*GROWTH), FRAMES)
        radius_F = radius_F if m["kind"] == "grow" else radius_F[::-1]
    else:
        radius_F = np.full(FRAMES, draw(6.5, 8.5) if count == 2 else draw(7.5, 10.5))
    rgb = tuple(float(v) for v in np.clip(np.asarray(COLORS[wanted["color"]]) + rng.uniform(-0.04, 0.04, 3), 0, 1))
    return Mover(wanted["shape"], wanted["color"], rgb, center_F2, radius_F)


def _speed_range(m: dict, count: int, rng: np.random.Generator) -> tuple[float, float]:
    if count == 2:
        return PAIR_SPEED
    if m["kind"] != "move":
        return SPEED_RANGE["fast"]
    return SPEED_RANGE[m["speed"] or str(rng.choice(list(SPEED_RANGE)))]


def path(m: dict, speed: float) -> np.ndarray:
    """Displacement from the first frame, (F, 2) in pixels, of a motion at ``speed`` pixels a frame."""
    if m["direction"] is None:
        return np.zeros((FRAMES, 2))
    step = PROFILES[m["kind"]][:, None] * np.asarray(DIRECTIONS[m["direction"]])
    if m["kind"] == "turn":
        step = step + _FIRST_HALF[::-1, None] * np.asarray(DIRECTIONS[m["then"]])
    return speed * np.concatenate([np.zeros((1, 2)), np.cumsum(step, axis=0)])


def _inside(mover: Mover) -> bool:
    reach = 1.2 * mover.radius_F[:, None]
    return bool((np.minimum(mover.center_F2, SIZE - mover.center_F2) >= reach).all())


def _apart(movers: list[Mover]) -> bool:
    return all(
        (np.linalg.norm(a.center_F2 - b.center_F2, axis=1) > 1.12 * (a.radius_F + b.radius_F) + 3.0).all()
        for a, b in itertools.combinations(movers, 2)
    )


def frame_of(clip: Clip, index: int) -> Scene:
    """One frame as a still scene."""
    objects = tuple(
        SceneObject(o.shape, o.color, float(o.center_F2[index, 0]), float(o.center_F2[index, 1]), float(o.radius_F[index]), o.rgb)
        for o in clip.objects
    )
    return Scene(spec=clip.spec, objects=objects, background=clip.background)


def render_clip(clip: Clip) -> np.ndarray:
    """Draw every frame, anti-aliased: float32 ``(FRAMES, 3, SIZE, SIZE)`` in [0, 1]."""
    return np.stack([video_frames.render(frame_of(clip, index)) for index in range(FRAMES)])


def change_one_attribute(clip: Clip, rng: np.random.Generator) -> Clip:
    """A drawing that breaks its spec in exactly one attribute of one object: shape, colour, direction, speed or manner."""
    objects = [dict(o) for o in clip.spec["objects"]]
    target = objects[rng.integers(len(objects))]
    m = target["motion"]
    kinds = ["shape", "color", "manner"] + ["direction"] * (m["direction"] is not None) + ["speed"] * (m["speed"] is not None)
    kind = kinds[rng.integers(len(kinds))]
    if kind == "shape":
        target["shape"] = _other([s for s in SHAPES if s not in {o["shape"] for o in objects}], None, rng)
    elif kind == "color":
        target["color"] = _other([c for c in COLORS if c not in {o["color"] for o in objects}], None, rng)
    elif kind == "direction":
        allowed = DIRECTIONS if m["direction"] not in STRAIGHT or clip.spec["skill"] == "direction" else STRAIGHT
        turned = OPPOSITE[m["direction"]] if m["then"] else _other(list(allowed), m["direction"], rng)
        target["motion"] = m | {"direction": turned}
    elif kind == "speed":
        target["motion"] = m | {"speed": _other(list(SPEED_RANGE), m["speed"], rng)}
    else:
        target["motion"] = _other_manner(m, rng)
    drawn = draw_clip(clip.spec | {"objects": objects}, rng)
    return Clip(spec=clip.spec, objects=drawn.objects, background=drawn.background)


def _other(names: list[str], name: str | None, rng: np.random.Generator) -> str:
    return str(rng.choice([n for n in names if n != name]))


def _other_manner(m: dict, rng: np.random.Generator) -> dict:
    """Another kind of motion; where the direction stays, so that nothing but the manner is wrong."""
    if m["kind"] in ("grow", "shrink"):
        return motion("shrink" if m["kind"] == "grow" else "grow")
    if m["direction"] not in STRAIGHT:
        return motion("grow")
    kind = _other(["move", "stop_and_go", "bounce", "turn"], m["kind"], rng)
    if kind == "turn":
        return motion("turn", m["direction"], _other([d for d in STRAIGHT if d != OPPOSITE[m["direction"]]], m["direction"], rng))
    return motion(kind, m["direction"])
