"""The held-out judge of the embedded video task: says whether a clip holds exactly what its spec demands, in every frame.

It gives the accuracy in the tables and never a training reward. A learned detector (the image judge's network, with
weights of its own and one more output, the radius) looks at each frame alone; detections of neighbouring frames are
linked into tracks; a small network reads each track's motion: kind, direction, second direction and speed. What is
malformed, off-palette, seen in some frames only or moves otherwise makes a clip wrong. Trained by
`reproduce/pretrain/video_judge.py`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from otca.tasks import video_frames
from otca.tasks.judge import HEAT_THRESHOLD, MALFORMED, OTHER, STRIDE, HeldOutJudge, Maps
from otca.tasks.video_frames import SIZE
from otca.tasks.video_scenes import DIRECTIONS, FRAMES, SPEED_BOUNDARY, STRAIGHT, motion
from otca.types import Prompt

SHAPE_CLASSES = (*video_frames.SHAPES, MALFORMED)
COLOR_CLASSES = (*video_frames.COLORS, OTHER)
KINDS = ("move", "stop_and_go", "turn", "bounce", "grow", "shrink", OTHER)
"""Kinds of motion; ``other`` is none of the grammar's: jitter, frozen or shuffled frames, jumps, half a motion."""
NOWHERE = "nowhere"
"""Direction of a track without one."""
DIRECTION_CLASSES = (*DIRECTIONS, NOWHERE)

CLASS_THRESHOLD = 0.5
"""Mean probability over the frames from which a track has its shape, and its colour; of a motion, its probability."""
FRAME_THRESHOLD = 0.2
"""Probability of the track's shape, and of its colour, below which a single frame shows something else."""
GATE = 8.0
"""Pixels that a thing may go from one frame to the next; objects of legal clips move 4 at most and are 17 apart."""
_CHUNK = 64
"""Frames a forward pass."""
UNIT_RADIUS = 10.0
"""Pixels; the detector predicts the logarithm of the radius over this."""
_CLASSES = {"shapes": list(SHAPE_CLASSES), "colors": list(COLOR_CLASSES), "kinds": list(KINDS)}
_OUTPUTS = (len(KINDS), len(DIRECTION_CLASSES), len(STRAIGHT), 1)
"""Outputs of the reader of motions: logits of kind, direction and second direction, and the logarithm of the speed."""


@dataclass(frozen=True)
class Track:
    """One thing over time: shape in `SHAPE_CLASSES`, colour in `COLOR_CLASSES`, motion as specs hold it (kind in `KINDS`).

    ``direction`` is where it goes first (in `DIRECTION_CLASSES`) whatever the kind, ``speed`` its pixels a frame while it
    goes; ``confidence`` in [0, 1] is the smallest of the mean probabilities of shape and colour and the motion's.
    ``steady``: seen in all frames, and in each of them as this shape and colour. ``center_F2`` in pixels (x, y).
    """

    shape: str
    color: str
    motion: dict
    direction: str
    speed: float
    confidence: float
    steady: bool
    center_F2: np.ndarray

    @property
    def valid(self) -> bool:
        """Whether this is, confidently and in every frame, one of the six shapes and colours in a motion of the grammar."""
        named = self.shape != MALFORMED and self.color != OTHER and self.motion["kind"] != OTHER
        return named and self.steady and self.confidence >= CLASS_THRESHOLD


class MotionReader(nn.Module):
    """Reads motions off tracks: centres (T, F, 2) in pixels and log radii (T, F), both wherever and however large."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * FRAMES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, sum(_OUTPUTS))
        )

    def forward(self, center_TF2: torch.Tensor, log_radius_TF: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits of kind (T, 7), direction (T, 9) and second direction (T, 4), and the speed (T,) in pixels a frame."""
        center = (center_TF2 - center_TF2.mean(1, keepdim=True)) / 4
        size = (log_radius_TF - log_radius_TF.mean(1, keepdim=True)) * 4
        out = self.layers(torch.cat([center.flatten(1), size], dim=1))
        kind, direction, then, speed = out.split(_OUTPUTS, dim=1)
        return kind, direction, then, SPEED_BOUNDARY * speed[:, 0].exp()


class VideoJudge(nn.Module):
    """Frame detector of ``widths`` channels (see `HeldOutJudge`), linker, and reader of motions of ``reader_width``."""

    def __init__(self, widths: tuple[int, int, int] = (24, 40, 56), reader_width: int = 96):
        super().__init__()
        self.detector = HeldOutJudge(widths, SHAPE_CLASSES, COLOR_CLASSES)
        self.radius = nn.Conv2d(self.detector.widths[1], 1, 1)
        self.reader = MotionReader(reader_width)
        self.config = {"widths": list(widths), "reader_width": reader_width, "frames": FRAMES} | _CLASSES

    def frame_maps(self, frame_NCHW: torch.Tensor) -> tuple[Maps, torch.Tensor]:
        """The detector's maps of frames (N, 3, SIZE, SIZE) in [0, 1], and the map (N, Y, X) of log(radius / 10 pixels)."""
        features = []
        with self.detector.head[0].register_forward_hook(lambda module, inputs, output: features.append(output)):
            maps = self.detector(frame_NCHW)
        return maps, self.radius(features[0])[:, 0]

    @torch.no_grad()
    def detect(self, media_BFCHW: torch.Tensor) -> list[list[Track]]:
        """What each clip (B, FRAMES, 3, SIZE, SIZE), in [0, 1], holds, by first appearance. ValueError for other media."""
        frame_NCHW = _as_frames(media_BFCHW).to(self.radius.weight)
        if self.training:
            raise RuntimeError("video judge: call eval() before detect(); batch statistics would leak between clips")
        seen: list[_Seen] = []
        for first, chunk in zip(range(0, len(frame_NCHW), _CHUNK), frame_NCHW.split(_CHUNK)):
            seen += _peaks(*self.frame_maps(chunk), first)
        by_clip: list[list[_Seen]] = [[] for _ in media_BFCHW]
        for one in seen:
            by_clip[one.frame // FRAMES].append(one)
        linked = [_link(found) for found in by_clip]
        motions = iter(self._motions([track for tracks in linked for track in tracks if len(track) == FRAMES]))
        return [[_describe(t, next(motions) if len(t) == FRAMES else None) for t in tracks] for tracks in linked]

    def _motions(self, tracks: list[list[_Seen]]) -> list[tuple]:
        """Per complete track: kind, direction, second direction, speed, and the probability of what the kind needs of them."""
        if not tracks:
            return []
        center_TF2 = torch.tensor(np.array([[s.center for s in t] for t in tracks]), dtype=torch.float32)
        log_radius_TF = torch.tensor([[s.log_radius for s in t] for t in tracks])
        kind, direction, then, speed = self.reader(*(v.to(self.radius.weight) for v in (center_TF2, log_radius_TF)))
        (p_kind, kind), (p_direction, direction), (p_then, then) = (v.softmax(1).max(1) for v in (kind, direction, then))
        out = []
        for i, index in enumerate(kind.tolist()):
            name, p = KINDS[index], p_kind[i].item()
            p *= p_direction[i].item() if name not in ("grow", "shrink") else 1.0
            p *= p_then[i].item() if name == "turn" else 1.0
            out.append((name, DIRECTION_CLASSES[direction[i]], STRAIGHT[then[i]], speed[i].item(), p))
        return out

    def verdict(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Whether each clip is exactly what its prompt's spec demands: bool (B,), on the CPU.

        Exactly the demanded objects, each of the right shape, colour and motion in every frame, and nothing else.
        """
        return self.accuracy(media_BFCHW, prompts)["exact"].bool()

    def accuracy(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """What is right in each clip: ``exact`` (the verdict), ``direction`` and ``speed`` (see `motion_accuracy`), each (B,)."""
        if len(prompts) != len(media_BFCHW):
            raise ValueError(f"video judge: {len(media_BFCHW)} clips but {len(prompts)} prompts")
        found = self.detect(media_BFCHW)
        rows = [{"exact": float(fulfils(f, p.spec))} | motion_accuracy(f, p.spec) for f, p in zip(found, prompts)]
        return {name: torch.tensor([row[name] for row in rows]) for name in ("exact", "direction", "speed")}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``; matrices and kernels in half precision."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        weights = {k: (v.half() if v.ndim >= 2 else v).contiguous() for k, v in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> VideoJudge:
        """Load a saved judge, in eval mode. Raises FileNotFoundError, ValueError (made for other classes)."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"video judge: {folder / name} not found; train it with python -m reproduce.pretrain_embedded"
                )
        config = json.loads((folder / "config.json").read_text())
        for key, classes in ({"frames": FRAMES} | _CLASSES).items():
            if config[key] != classes:
                raise ValueError(f"video judge: {folder}/config.json has {key} {config[key]}, this code {classes}")
        judge = cls(tuple(config["widths"]), config["reader_width"])
        judge.load_state_dict(load_file(folder / "model.safetensors"))
        return judge.eval()


# ------------------------------------------------------------------------------------------------------------- judging


def fulfils(found: list[Track], spec: dict) -> bool:
    """Whether the tracks are the spec's objects, one to one, each moving as stated, with nothing left over."""
    wanted = spec["objects"]
    if len(found) != len(wanted) or not all(track.valid for track in found):
        return False
    return any(
        all(t.shape == o["shape"] and t.color == o["color"] and _moves_as(t.motion, o["motion"]) for t, o in zip(order, wanted))
        for order in itertools.permutations(found)
    )


def _moves_as(seen: dict, stated: dict) -> bool:
    return all(stated[key] in (None, seen[key]) for key in stated)


def motion_accuracy(found: list[Track], spec: dict) -> dict[str, float]:
    """Share of the demanded objects whose track goes in the stated ``direction`` (of a turn, both), and at the stated ``speed``.

    Tracks, the longest first, stand for the objects that they resemble most in shape and colour; an object without one
    counts as wrong. NaN where no object states it.
    """
    wanted, right = spec["objects"], {"direction": [], "speed": []}
    candidates = [*sorted(found, key=lambda t: -len(t.center_F2))[:4], *[None] * len(wanted)]
    order = max(itertools.permutations(candidates, len(wanted)), key=lambda order: sum(map(_likeness, order, wanted)))
    for track, stated in zip(order, (o["motion"] for o in wanted)):
        if stated["direction"]:
            went = track is not None and track.direction == stated["direction"]
            right["direction"].append(went and stated["then"] in (None, track.motion["then"]))
        if stated["speed"]:
            went = track is not None and track.direction != NOWHERE
            right["speed"].append(went and (track.speed > SPEED_BOUNDARY) == (stated["speed"] == "fast"))
    return {name: float(np.mean(values)) if values else float("nan") for name, values in right.items()}


def _likeness(track: Track | None, wanted: dict) -> int:
    return -1 if track is None else (track.shape == wanted["shape"]) + (track.color == wanted["color"])


# ------------------------------------------------------------------------------------------------------------- linking


@dataclass(frozen=True)
class _Seen:
    """One detection: index of its frame, centre in pixels, class probabilities."""

    frame: int
    center: np.ndarray
    log_radius: float
    shape_prob: np.ndarray
    color_prob: np.ndarray


def _peaks(maps: Maps, log_radius_NYX: torch.Tensor, first: int) -> list[_Seen]:
    """Local maxima of the heat above the threshold, frame by frame (the first has index ``first``), top to bottom."""
    heat = maps.heat_BYX.sigmoid()
    summit = (heat == nn.functional.max_pool2d(heat, 3, stride=1, padding=1)) & (heat >= HEAT_THRESHOLD)
    n, y, x = summit.nonzero(as_tuple=True)
    offset = maps.offset_B2YX[n, :, y, x]
    center = STRIDE * (torch.stack([x, y], dim=1) + 0.5 + offset)
    shape, color = maps.shape_BSYX[n, :, y, x].softmax(1), maps.color_BKYX[n, :, y, x].softmax(1)
    columns = (center, log_radius_NYX[n, y, x], shape, color)
    return [_Seen(first + frame, *row) for frame, *row in zip(n.tolist(), *(v.cpu().numpy() for v in columns))]


def _link(found: list[_Seen]) -> list[list[_Seen]]:
    """Detections of one clip, in order of frames, as tracks: nearest pairs of neighbouring frames within the gate."""
    tracks: list[list[_Seen]] = []
    for _, group in itertools.groupby(found, key=lambda s: s.frame):
        new = list(group)
        live = [t for t in tracks if t[-1].frame == new[0].frame - 1]
        pairs = sorted(
            (float(np.linalg.norm(t[-1].center - s.center)), i, j) for i, t in enumerate(live) for j, s in enumerate(new)
        )
        taken_i, taken_j = set(), set()
        for distance, i, j in pairs:
            if distance <= GATE and i not in taken_i and j not in taken_j:
                live[i].append(new[j])
                taken_i.add(i), taken_j.add(j)
        tracks += [[s] for j, s in enumerate(new) if j not in taken_j]
    return tracks


def _describe(track: list[_Seen], reading: tuple | None) -> Track:
    """The record of a track; without a reading of its motion (it is incomplete), the motion is ``other``."""
    shape_FS, color_FK = np.stack([s.shape_prob for s in track]), np.stack([s.color_prob for s in track])
    shape, color = shape_FS.mean(0).argmax(), color_FK.mean(0).argmax()
    kind, direction, then, speed, p_motion = reading or (OTHER, NOWHERE, None, 0.0, 0.0)
    moves = kind not in ("grow", "shrink", OTHER)
    pace = "fast" if speed > SPEED_BOUNDARY else "slow"
    return Track(
        shape=SHAPE_CLASSES[shape],
        color=COLOR_CLASSES[color],
        motion=motion(kind, direction if moves else None, then if kind == "turn" else None, pace if kind == "move" else None),
        direction=direction,
        speed=speed,
        confidence=float(min(shape_FS[:, shape].mean(), color_FK[:, color].mean(), p_motion)),
        steady=reading is not None and min(shape_FS[:, shape].min(), color_FK[:, color].min()) >= FRAME_THRESHOLD,
        center_F2=np.stack([s.center for s in track]),
    )


def _as_frames(media_BFCHW: torch.Tensor) -> torch.Tensor:
    """Checked media with its frames one after the other: (B · FRAMES, 3, SIZE, SIZE)."""
    if media_BFCHW.ndim != 5 or tuple(media_BFCHW.shape[1:]) != (FRAMES, 3, SIZE, SIZE):
        raise ValueError(f"video judge: media must be (B, {FRAMES}, 3, {SIZE}, {SIZE}), got {tuple(media_BFCHW.shape)}")
    if not torch.isfinite(media_BFCHW).all():
        raise ValueError("video judge: media holds NaN or Inf")
    return media_BFCHW.flatten(0, 1)
