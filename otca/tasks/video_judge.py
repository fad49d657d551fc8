"""The held-out judge of clips: the detector on every frame, what it sees linked to tracks, and their motion measured."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from otca.tasks.judge import MALFORMED, OTHER, Detection, HeldOutJudge, looks_like, orders
from otca.tasks.video_scenes import DIRECTIONS, FRAMES, RELATIONS, SPEED_BOUNDARY
from otca.types import Prompt

GATE = 10.0
"""Pixels that a thing may go from one frame to the next."""
AGREEING = 7
"""Frames, of nine, in which a thing must be recognised as the same to be an object; what is seen in three or fewer is none."""
MOVING = 0.7
"""Pixels a frame below which a thing stands still."""
HEADING = np.cos(np.radians(30.0))
"""Cosine of the largest angle between a heading and what is stated."""


@dataclass(frozen=True)
class Track:
    """One thing over time: the frames in which it is seen, and how."""

    frames: tuple[int, ...]
    seen: tuple[Detection, ...]

    @cached_property
    def named(self) -> tuple[tuple[str, str], int]:
        """Shape and colour that most frames, confidently, show; and how many do."""
        names = Counter((d.shape, d.color) for d in self.seen if d.valid)
        return names.most_common(1)[0] if names else ((MALFORMED, OTHER), 0)

    @property
    def shape(self) -> str:
        """In `SHAPE_CLASSES`."""
        return self.named[0][0]

    @property
    def color(self) -> str:
        """In `COLOR_CLASSES`."""
        return self.named[0][1]

    @property
    def valid(self) -> bool:
        """Whether this is one of the four shapes in one of the four colours, and remains it."""
        return self.named[1] >= AGREEING

    @cached_property
    def center_F2(self) -> np.ndarray:
        """Centre in pixels in every frame, interpolated where it is not seen."""
        return np.stack([np.interp(range(FRAMES), self.frames, [getattr(d, axis) for d in self.seen]) for axis in "xy"], axis=1)

    @cached_property
    def velocities(self) -> np.ndarray:
        """Pixels a frame (2, 2) in the two halves of the clip; means of neighbouring frames do not feel a shake."""
        mean_F2 = (self.center_F2[:-1] + self.center_F2[1:]) / 2
        return np.stack([mean_F2[3] - mean_F2[0], mean_F2[7] - mean_F2[4]]) / 3

    @property
    def speed(self) -> float:
        """Pixels a frame, mean of the two halves."""
        return float(np.linalg.norm(self.velocities, axis=1).mean())

    def heads(self, course: list[str]) -> bool:
        """Whether both halves head as a course says."""
        return all(_along(v, np.array(DIRECTIONS[d])) for v, d in zip(self.velocities, course))

    def paced(self, speed: str) -> bool:
        """Whether it is slow, or fast, as stated."""
        return self.speed > MOVING and (self.speed > SPEED_BOUNDARY) == (speed == "fast")

    def moves_as(self, wanted: dict) -> bool:
        """Whether it moves, and as stated."""
        course, speed = wanted["course"], wanted["speed"]
        return self.speed > MOVING and (course is None or self.heads(course)) and (speed is None or self.paced(speed))


class VideoJudge(HeldOutJudge):
    """The detector on every frame of clips, with weights of its own."""

    frames = FRAMES

    def detect(self, media_BFCHW: torch.Tensor) -> list[list[Track]]:
        """What each clip (B, FRAMES, 3, SIZE, SIZE), in [0, 1], holds, by first appearance. ValueError for other media."""
        seen = self.see(media_BFCHW)
        return [_link(seen[first : first + FRAMES]) for first in range(0, len(seen), FRAMES)]

    @staticmethod
    def fulfils(found: list[Track], spec: dict) -> bool:
        """Whether the tracks are the spec's objects, one to one, each moving as stated, with nothing left over."""
        return any(
            _moves_together(order, spec["relation"])
            for order in orders(found, spec["objects"])
            if all(looks_like(t, o) and t.moves_as(o) for t, o in zip(order, spec["objects"]))
        )

    def accuracy(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """Share (B,) of the demanded objects that go in the stated ``direction``, and at the stated ``speed``.

        Tracks stand for the objects that they resemble most; one without a track counts as wrong. NaN where none states it.
        """
        rows = [motion_accuracy(found, p.spec) for found, p in zip(self.detect(media_BFCHW), prompts)]
        return {name: torch.tensor([row[name] for row in rows]) for name in ("direction", "speed")}


def motion_accuracy(found: list[Track], spec: dict) -> dict[str, float]:
    """`VideoJudge.accuracy` of one clip."""
    wanted = spec["objects"]
    candidates = [*sorted(found, key=lambda t: -len(t.frames))[:4], *[None] * len(wanted)]
    order = max(itertools.permutations(candidates, len(wanted)), key=lambda order: sum(map(_likeness, order, wanted)))
    right = {
        "direction": [t is not None and t.heads(o["course"]) for t, o in zip(order, wanted) if o["course"]],
        "speed": [t is not None and t.paced(o["speed"]) for t, o in zip(order, wanted) if o["speed"]],
    }
    return {name: float(np.mean(values)) if values else float("nan") for name, values in right.items()}


def _likeness(track: Track | None, wanted: dict) -> int:
    return -1 if track is None else (track.shape == wanted["shape"]) + (track.color == wanted["color"])


def _moves_together(order: tuple[Track, ...], relation: str | None) -> bool:
    if relation is None:
        return True
    way = order[1].center_F2.mean(0) - order[0].center_F2.mean(0)
    return all(_along(track.velocities.mean(0), sign * way) for track, sign in zip(order, RELATIONS[relation]))


def _along(velocity: np.ndarray, way: np.ndarray) -> bool:
    speed = np.linalg.norm(velocity)
    return bool(speed > MOVING and velocity @ way >= HEADING * speed * np.linalg.norm(way))


def _link(seen_F: list[list[Detection]]) -> list[Track]:
    """Detections of a clip as tracks: nearest pairs within the gate, from where a track was last seen, two frames ago at most.

    What is seen in three frames or fewer and is never confidently recognised is not counted as a thing.
    """
    tracks: list[list[tuple[int, Detection]]] = []
    for frame, found in enumerate(seen_F):
        live = [t for t in tracks if frame - t[-1][0] <= 2]
        pairs = [(np.hypot(t[-1][1].x - d.x, t[-1][1].y - d.y), i, j) for i, t in enumerate(live) for j, d in enumerate(found)]
        taken: tuple[set[int], set[int]] = (set(), set())
        for distance, i, j in sorted(pairs):
            if distance <= GATE and i not in taken[0] and j not in taken[1]:
                live[i].append((frame, found[j]))
                taken[0].add(i)
                taken[1].add(j)
        tracks += [[(frame, d)] for j, d in enumerate(found) if j not in taken[1]]
    lasting = [t for t in tracks if len(t) > 3 or any(d.valid for _, d in t)]
    return [Track(tuple(f for f, _ in t), tuple(d for _, d in t)) for t in lasting]
