"""The training verifier of `otca-video-v2`: every frame read as a picture, what is seen linked to tracks, motion fitted to them.

It reads pixels alone and shares no code with the held-out judge (`otca/tasks/judge.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment

from otca.tasks import verifier
from otca.tasks.scenes import COLORS, SHAPES
from otca.tasks.verifier import Segment
from otca.tasks.video_scenes import DIRECTIONS, FRAMES, HALF, RELATIONS, SPEED_BOUNDARY

SHORT = 3
"""Frames below which a track is a flicker, not an object."""
REACH = 12.0
"""Pixels between two sightings of an object; where it was seen frames ago, as many times that."""
ANGLE = 30.0
"""Degrees off the stated heading at which a course is half right."""
START = 0.7
"""Pixels a frame at which an object begins to move."""
SHAKY = 2.5
"""Pixels that an object leaves its way from frame to frame, at which its motion is shaky."""


@dataclass(frozen=True)
class Track:
    """One object through time: the frames (N,) in which it is seen, and how."""

    frame_N: np.ndarray
    segments: tuple[Segment, ...]

    @property
    def presence(self) -> float:
        """Share of the clip's frames in which the object is seen."""
        return len(self.frame_N) / FRAMES

    @cached_property
    def look(self) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the shapes and of the colours, means over all frames; a frame without the object counts 0."""
        return tuple(np.sum([getattr(s, kind) for s in self.segments], axis=0) / FRAMES for kind in ("shape_prob", "color_prob"))

    @cached_property
    def center_N2(self) -> np.ndarray:
        """Centres in pixels (x, y)."""
        return np.array([(s.x, s.y) for s in self.segments])

    @cached_property
    def velocities(self) -> tuple[np.ndarray, np.ndarray]:
        """Velocity (2,) in pixels a frame in the first and in the second half of the clip."""
        return self._velocity(0, HALF), self._velocity(HALF, FRAMES - 1)

    def _velocity(self, first: int, last: int) -> np.ndarray:
        """By least squares; 0 where fewer than two frames are seen."""
        inside = (self.frame_N >= first) & (self.frame_N <= last)
        if inside.sum() < 2:
            return np.zeros(2)
        time_N = self.frame_N[inside] - self.frame_N[inside].mean()
        return time_N @ self.center_N2[inside] / np.square(time_N).sum()

    @property
    def speed(self) -> float:
        """Pixels a frame, mean of the two halves."""
        return float(np.mean([np.hypot(*v) for v in self.velocities]))


def read(media_BFCHW: np.ndarray) -> list[tuple[Track, ...]]:
    """The tracks of clips, float (B, FRAMES, 3, SIZE, SIZE) in [0, 1], flickers among them."""
    readings = verifier.read(media_BFCHW.reshape(-1, *media_BFCHW.shape[2:]))
    return [_link([r.segments for r in readings[first : first + FRAMES]]) for first in range(0, len(readings), FRAMES)]


def _link(segments_F: list[list[Segment]]) -> tuple[Track, ...]:
    """Tracks by optimal assignment, frame after frame, of segments to where the tracks were seen last."""
    tracks: list[list[tuple[int, Segment]]] = []
    for index, segments in enumerate(segments_F):
        free = set(range(len(segments)))
        if tracks and segments:
            cost = np.array([[_unlike(*track[-1], index, segment) for segment in segments] for track in tracks])
            for row, column in zip(*linear_sum_assignment(cost)):
                if cost[row, column] < 2:
                    tracks[row].append((index, segments[column]))
                    free.discard(column)
        tracks += [[(index, segments[column])] for column in sorted(free)]
    return tuple(Track(np.array([i for i, _ in t]), tuple(s for _, s in t)) for t in tracks)


def _unlike(before: int, a: Segment, now: int, b: Segment) -> float:
    """How unlike two sightings are, in place and colour; at least 2 where they are out of reach."""
    away = np.hypot(a.x - b.x, a.y - b.y) / (REACH * (now - before))
    return 2.0 if away > 1 else float(away + 0.5 * np.abs(a.color_prob - b.color_prob).sum())


# -------------------------------------------------------------------------------------------------------------- scoring


def alignment(tracks: tuple[Track, ...], spec: dict) -> float:
    """Soft agreement with a spec in [0, 1]: mean match of the demanded objects × surplus penalty × relation; 0 without objects.

    A match is the probability of shape and colour × whether it moves × course × speed, where a wrong course and a wrong speed
    leave 0.3 and 0.4; the best assignment counts.
    """
    wanted, found = spec["objects"], sorted(tracks, key=lambda t: -t.presence)[:5]
    if not found:
        return 0.0
    best, chosen = verifier.assign(np.array([[_match(track, demand) for track in found] for demand in wanted]))
    surplus = sum(t.presence for i, t in enumerate(found) if i not in chosen)
    score = best / len(wanted) * 0.6**surplus
    if spec["relation"] is not None:
        score *= 0.4 + 0.6 * _relation(spec["relation"], found, chosen)
    return float(score)


def satisfied(tracks: tuple[Track, ...], spec: dict) -> bool:
    """Hard verdict: exactly the demanded objects, each with every attribute more likely right than wrong."""
    found = [track for track in tracks if len(track.frame_N) >= SHORT]
    if len(found) != len(spec["objects"]):
        return False
    right = np.array([[float(min(_parts(track, demand)) > 0.5) for track in found] for demand in spec["objects"]])
    best, chosen = verifier.assign(right)
    if best < len(found):
        return False
    return spec["relation"] is None or _relation(spec["relation"], found, chosen) > 0.5


def _match(track: Track, demand: dict) -> float:
    look, moves, *course, speed = _parts(track, demand)
    return look * moves * (0.3 + 0.7 * float(np.mean(course))) * (0.4 + 0.6 * speed)


def _parts(track: Track, demand: dict) -> tuple[float, float, float, float, float]:
    """Soft truth in [0, 1] of the look, of moving at all, of the headings of both halves and of the speed."""
    shape_S, color_K = track.look
    look = shape_S[SHAPES.index(demand["shape"])]
    look *= color_K[list(COLORS).index(demand["color"])] if demand["color"] else color_K.max()
    moves = 1 - 2 ** -np.square(track.speed / START)
    first, second = demand["course"] or (None, None)
    headings = [1.0 if d is None else _aim(v, np.array(DIRECTIONS[d])) for v, d in zip(track.velocities, (first, second))]
    excess = (track.speed - SPEED_BOUNDARY) / 0.3
    speed = {"fast": _soft(excess), "slow": _soft(-excess), None: 1.0}[demand["speed"]]
    return float(look), float(moves), *headings, speed


def _relation(relation: str, tracks: list[Track], chosen: tuple[int, ...]) -> float:
    """Soft truth in [0, 1] of the headings that a relation asks of two objects, along the way from one to the other."""
    if -1 in chosen:
        return 0.0
    pair = [tracks[i] for i in chosen]
    way = pair[1].center_N2.mean(0) - pair[0].center_N2.mean(0)
    return min(_aim(sum(track.velocities) / 2, sign * way) for track, sign in zip(pair, RELATIONS[relation]))


def _aim(velocity: np.ndarray, way: np.ndarray) -> float:
    """Whether something moves along a way: near 1 when it does, one half at `ANGLE`, 0.2 at a right angle, 0 at the opposite."""
    speed = np.hypot(*velocity)
    if speed < 1e-6:
        return 0.0
    cosine = np.clip(velocity @ way / (speed * np.hypot(*way) + 1e-6), -1, 1)
    turn = float(np.degrees(np.arccos(cosine)))
    return (0.4 * (1 + cosine) / 2 + 0.6 * _soft((ANGLE - turn) / 6)) * (1 - 2 ** -np.square(speed / START))


def _soft(excess: float) -> float:
    return float(1 / (1 + np.exp(-np.clip(excess, -50, 50))))


# ------------------------------------------------------------------------------------------------------- motion quality


def motion_quality(tracks: tuple[Track, ...]) -> float:
    """How smoothly what moves goes its way and keeps its identity, in [0, 1]; 0 where nothing lasts, or nothing moves."""
    lasting = [track for track in tracks if len(track.frame_N) >= SHORT]
    if not lasting:
        return 0.0
    flickers = len(tracks) - len(lasting)
    return float(np.mean([_plausible(track) for track in lasting]) * np.exp(-flickers / 4))


def _plausible(track: Track) -> float:
    """Presence × motion × steady course × constant colour of one object."""
    moves = 1 - 2 ** -np.square(track.speed / START)
    bends_N = np.hypot(*np.diff(track.center_N2, n=2, axis=0).T)
    smooth = np.exp(-0.5 * np.square(np.median(bends_N) / SHAKY))  # one bend is a course
    color_NK = np.array([s.color_prob for s in track.segments])
    constant = np.exp(-0.5 * np.abs(np.diff(color_NK, axis=0)).sum())
    return track.presence * moves * smooth * constant
