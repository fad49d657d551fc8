"""The training verifier of the video task: segments every frame, links the segments to tracks, and reads motion from them.

It reads pixels alone. Frames are segmented by `video_frames.read`; a motion is recognised by least squares
against the grammar's own profiles. The held-out judge of videos is a learned model that shares no code with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from otca.tasks import video_frames
from otca.tasks.video_frames import SIZE
from otca.tasks.video_scenes import COLORS, DIRECTIONS, FRAMES, OPPOSITE, SHAPES, SPEED_BOUNDARY, motion, path

MAX_SEGMENTS = 6
"""Segments of a frame that are tracked, the largest first."""
SHORT = 3
"""Frames below which a track is a flicker, not an object."""
GROWTH_BOUNDARY = 0.3
"""Change of log radius over the clip that is half-way to growing (legal growth is at least log 1.8 = 0.59)."""
MOTION_FREE = 0.3
"""Share of a match that the right object earns whatever it does."""

_LINK_REACH = 16.0
"""Pixels of travel between frames that cost as much as a full change of colour."""
_LINK_LIMIT = 2.0
_RESIDUAL_FLOOR = 0.4
"""Pixels by which a legal track departs from its profile: rounding, blur, a generator's hand."""
_SPEED_WIDTH = 0.2
_SPEED_FLOOR = 0.7
"""Pixels a frame at which an object begins to move (legal objects make at least 1.2)."""
_SIDE_FREE = 0.4
"""Share of a motion that survives a wrong manner, speed or size."""

_REGULAR = 0.12
"""Overlap with an outline above 0.6 at which a segment is regular: less than for images, as small objects blur more."""

_SHAPE_INDEX = [video_frames.SHAPES.index(name) for name in SHAPES]
_PALETTE = np.array(list(COLORS.values()))
_COLOR_TOLERANCE = 0.3
"""RGB distance at which a colour's probability is 1/e: more than for images, as small objects fade and the palette is wider."""


@dataclass(frozen=True)
class Track:
    """One object through time; N are the frames in which it is seen."""

    frame_N: np.ndarray
    segments: tuple[video_frames.Segment, ...]

    @property
    def presence(self) -> float:
        """Share of the clip's frames in which the object is seen."""
        return len(self.frame_N) / FRAMES

    @cached_property
    def shape_prob(self) -> np.ndarray:
        """Mean over all frames of the probabilities of `video_scenes.SHAPES`; a frame without the object counts 0."""
        return np.sum([_shape_prob(s) for s in self.segments], axis=0) / FRAMES

    @cached_property
    def color_prob(self) -> np.ndarray:
        """Mean over all frames of the probabilities of `video_scenes.COLORS`; a frame without the object counts 0."""
        return np.sum([_color_prob(s) for s in self.segments], axis=0) / FRAMES

    @cached_property
    def center_N(self) -> np.ndarray:
        """Centres in pixels as complex numbers x + iy, y downward."""
        return np.array([complex(s.x, s.y) for s in self.segments])

    @cached_property
    def log_radius_N(self) -> np.ndarray:
        """Natural logarithm of the radius, up to a constant of the shape."""
        return 0.5 * np.log([s.area for s in self.segments])

    @cached_property
    def growth(self) -> float:
        """Change of log radius from the first to the last frame, by least squares."""
        return float(_slope(self.frame_N, self.log_radius_N).real) * (FRAMES - 1)

    @cached_property
    def manners(self) -> dict[str, float]:
        """Probability of each profile: ``move``, ``stop_and_go``, ``bounce``, ``turn down``, ``turn up``.

        A profile q (complex, for a start to the right) explains a track z up to a start and one complex factor, its velocity,
        so direction does not matter; ``turn up`` is a turn to the left hand. Weights are residual⁻⁴, as of a Student t.
        """
        names, profile_KF = _profiles()
        q_KN = profile_KF[:, self.frame_N]
        q_KN = q_KN - q_KN.mean(1, keepdims=True)
        z_N = self.center_N - self.center_N.mean()
        explained_K = np.abs(q_KN.conj() @ z_N) ** 2 / np.maximum(np.square(np.abs(q_KN)).sum(1), 1e-9)
        residual_K = np.maximum(np.square(np.abs(z_N)).sum() - explained_K, 0) / len(z_N)
        weight_K = (residual_K + _RESIDUAL_FLOOR**2) ** -2.0
        return dict(zip(names, weight_K / weight_K.sum()))

    def velocity(self, first: int, last: int) -> complex:
        """Least-squares velocity in pixels a frame over the frames ``first`` to ``last``; 0 where fewer than two are seen."""
        inside = (self.frame_N >= first) & (self.frame_N <= last)
        return _slope(self.frame_N[inside], self.center_N[inside]) if inside.sum() > 1 else 0j


@dataclass(frozen=True)
class Reading:
    """What the verifier sees in one clip: tracks (objects and flickers) and the reading of every frame."""

    tracks: tuple[Track, ...]
    frames: tuple[video_frames.Reading, ...]

    @property
    def objects(self) -> tuple[Track, ...]:
        """Tracks that last."""
        return tuple(t for t in self.tracks if len(t.frame_N) >= SHORT)

    @property
    def speck_area(self) -> float:
        """Pixels a frame that belong to no object."""
        return sum(f.speck_area for f in self.frames) / FRAMES


@lru_cache(maxsize=1)
def _profiles() -> tuple[list[str], np.ndarray]:
    """Names of the profiles and their paths (K, F) at unit speed, the first step to the right, as complex numbers."""
    known = {kind: motion(kind, "right") for kind in ("move", "stop_and_go", "bounce")}
    known |= {f"turn {then}": motion("turn", "right", then) for then in ("down", "up")}
    return list(known), np.stack([path(m, 1.0) for m in known.values()]) @ np.array([1, 1j])


def _shape_prob(segment: video_frames.Segment) -> np.ndarray:
    """Probabilities of the four outlines of this grammar, together 0 for an outline like none of them."""
    prob = segment.shape_prob[_SHAPE_INDEX]
    return prob / max(prob.sum(), 1e-9) * np.clip((segment.overlap - 0.6) / _REGULAR, 0, 1)


def _color_prob(segment: video_frames.Segment) -> np.ndarray:
    """Probabilities of the four colours of this grammar, together 0 for a colour like none of them."""
    prob = np.exp(-np.square(_PALETTE - segment.rgb).sum(1) / _COLOR_TOLERANCE**2)
    return prob / max(1.0, prob.sum())


def _slope(frame_N: np.ndarray, value_N: np.ndarray) -> complex:
    """Least-squares slope of values over frames."""
    t_N = frame_N - frame_N.mean()
    return complex((t_N * value_N).sum() / max(np.square(t_N).sum(), 1e-9))


# -------------------------------------------------------------------------------------------------------------- reading


def read(clip_FCHW: np.ndarray) -> Reading:
    """Read one clip, float (FRAMES, 3, SIZE, SIZE) in [0, 1]. Raises ValueError for another shape."""
    if clip_FCHW.shape != (FRAMES, 3, SIZE, SIZE):
        raise ValueError(f"the video verifier reads clips ({FRAMES}, 3, {SIZE}, {SIZE}), got {tuple(clip_FCHW.shape)}")
    frames = tuple(video_frames.read(frame_CHW) for frame_CHW in clip_FCHW)
    return Reading(_link([sorted(f.segments, key=lambda s: -s.area)[:MAX_SEGMENTS] for f in frames]), frames)


def _link(segments_F: list[list[video_frames.Segment]]) -> tuple[Track, ...]:
    """Tracks by optimal assignment, frame after frame, of segments to where the tracks were seen last."""
    tracks: list[list[tuple[int, video_frames.Segment]]] = []
    for index, segments in enumerate(segments_F):
        free = set(range(len(segments)))
        if tracks and segments:
            cost = np.array([[_distance(track[-1][1], segment) for segment in segments] for track in tracks])
            for row, column in zip(*linear_sum_assignment(cost)):
                if cost[row, column] < _LINK_LIMIT:
                    tracks[row].append((index, segments[column]))
                    free.discard(column)
        tracks += [[(index, segments[column])] for column in sorted(free)]
    return tuple(Track(np.array([i for i, _ in t]), tuple(s for _, s in t)) for t in tracks)


def _distance(a: video_frames.Segment, b: video_frames.Segment) -> float:
    """How unlike two sightings are, in place, colour and outline."""
    looks = np.abs(a.rgb - b.rgb).sum() + 0.25 * np.abs(a.shape_prob - b.shape_prob).sum()
    return float(np.hypot(a.x - b.x, a.y - b.y) / _LINK_REACH + looks)


# -------------------------------------------------------------------------------------------------------------- scoring


def alignment(reading: Reading, spec: dict) -> float:
    """Soft agreement with a spec in [0, 1]: mean match of the demanded objects × surplus penalty; 0 without objects.

    A match is the probability of shape and colour × (0.3 + 0.7 × `motion_match`); the best assignment counts.
    """
    if not reading.tracks:
        return 0.0
    match = np.array([[_match(track, demand) for track in reading.tracks] for demand in spec["objects"]])
    rows, columns = linear_sum_assignment(match, maximize=True)
    surplus = sum(t.presence for i, t in enumerate(reading.tracks) if i not in columns)
    return float(match[rows, columns].sum() / len(spec["objects"]) * 0.7 ** (surplus + reading.speck_area / 100))


def satisfied(reading: Reading, spec: dict) -> bool:
    """Hard verdict: exactly the demanded objects, each with every attribute more likely right than wrong."""
    found, wanted = reading.objects, spec["objects"]
    if len(found) != len(wanted) or reading.speck_area > 2 * video_frames.MIN_AREA:
        return False
    right = np.array([[_right(track, demand) for track in found] for demand in wanted])
    rows, columns = linear_sum_assignment(right, maximize=True)
    return bool(right[rows, columns].all())


def _looks(track: Track, demand: dict) -> tuple[float, float]:
    """Probability of the demanded shape, and of the demanded colour."""
    return float(track.shape_prob[SHAPES.index(demand["shape"])]), float(track.color_prob[list(COLORS).index(demand["color"])])


def _match(track: Track, demand: dict) -> float:
    shape, color = _looks(track, demand)
    return shape * color * (MOTION_FREE + (1 - MOTION_FREE) * motion_match(track, demand["motion"]))


def _right(track: Track, demand: dict) -> bool:
    shape, color = _looks(track, demand)
    course, sides = _motion_parts(track, demand["motion"])
    return min(shape, color, *course, *sides) > 0.5


def motion_match(track: Track, m: dict) -> float:
    """Soft agreement in [0, 1] of a track with a demanded motion, with credit for each part that is right.

    The course (heading in either half of the clip, or growth) counts in full; a wrong manner, speed or a size that should
    not change leave at least 0.4 each.
    """
    course, sides = _motion_parts(track, m)
    return float(np.mean(course) * np.prod([_SIDE_FREE + (1 - _SIDE_FREE) * part for part in sides]))


def _motion_parts(track: Track, m: dict) -> tuple[list[float], list[float]]:
    """Soft truth in [0, 1] of the course and of manner, speed and size, each above one half where it is right."""
    first, second = track.velocity(0, FRAMES // 2), track.velocity(FRAMES // 2, FRAMES - 1)
    if m["kind"] in ("grow", "shrink"):
        growth = track.growth if m["kind"] == "grow" else -track.growth
        return [rise(growth, GROWTH_BOUNDARY)], [1 - rise(max(abs(first), abs(second)), _SPEED_FLOOR)]
    then = {"turn": m["then"], "bounce": OPPOSITE[m["direction"]]}.get(m["kind"], m["direction"])
    sides = [track.manners[_profile_name(m)], 1 - rise(abs(track.growth), GROWTH_BOUNDARY)]
    if m["speed"] is not None:
        excess = (abs(track.velocity(0, FRAMES - 1)) - SPEED_BOUNDARY) / _SPEED_WIDTH
        sides.append(float(1 / (1 + np.exp(-excess if m["speed"] == "fast" else excess))))
    return [_heading(first, m["direction"]), _heading(second, then)], sides


def _profile_name(m: dict) -> str:
    if m["kind"] != "turn":
        return m["kind"]
    (ax, ay), (bx, by) = DIRECTIONS[m["direction"]], DIRECTIONS[m["then"]]
    return "turn down" if ax * by - ay * bx > 0 else "turn up"


def rise(value: float, boundary: float) -> float:
    """0 up to 0, one half at the boundary, then towards 1."""
    return float(1 - np.exp2(-np.square(max(value, 0.0) / boundary)))


def _heading(velocity: complex, direction: str) -> float:
    """Whether something moves along a direction: 0.98 when it does, one half at 23°, 0.3 at 45°, 0 for the opposite."""
    unit = complex(*DIRECTIONS[direction])
    turn = abs(np.angle(velocity * unit.conjugate())) if velocity else np.pi
    aim = 0.35 * (1 + np.cos(turn)) / 2 + 0.65 / (1 + np.exp((np.degrees(turn) - 18) / 5))
    return float(aim * rise(abs(velocity), _SPEED_FLOOR))
