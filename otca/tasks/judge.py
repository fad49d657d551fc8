"""The held-out judges: a small learned detector that says whether an image, or a clip, holds exactly what its spec demands.

It gives the accuracy in the tables and never a training reward. One convolutional network predicts, on a 16×16 grid, where
things are, which of the four shapes each is (or ``malformed``) and which of the four colours it has (or ``other``). A
malformed or off-palette thing is detected too, so that it makes an image wrong instead of going unseen. Of a clip every frame
is looked at, and what is seen in them is linked to tracks. Trained by `reproduce/pretrain/judge.py`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from otca.tasks.scenes import COLORS, SHAPES, SIZE
from otca.tasks.video_scenes import DIRECTIONS, FRAMES, RELATIONS, SPEED_BOUNDARY
from otca.types import Prompt

MALFORMED = "malformed"
"""Shape of a thing that is none of the four shapes: faded, merged, chopped, blurred away, in between two shapes."""
OTHER = "other"
"""Colour of a thing that is none of the four colours, or more than one."""
SHAPE_CLASSES = (*SHAPES, MALFORMED)
COLOR_CLASSES = (*COLORS, OTHER)

STRIDE = 4
"""Pixels a grid cell."""
HEAT_THRESHOLD = 0.35
"""Something is there: centre probability from which a peak becomes a detection."""
CONFIDENCE_THRESHOLD = 0.5
"""It is recognised: confidence below which a detection counts as no valid object (and so makes its image wrong)."""
RELATION_MARGIN = 2.0
"""Pixels by which the stated axis must exceed the other: a diagonal is neither 'left of' nor 'above'."""
_CHUNK = 64
"""Images a forward pass."""

GATE = 10.0
"""Pixels that a thing may go from one frame to the next."""
AGREEING = 7
"""Frames, of nine, in which a thing must be recognised as the same to be an object; what is seen in three or fewer is none."""
MOVING = 0.7
"""Pixels a frame below which a thing stands still."""
HEADING = np.cos(np.radians(30.0))
"""Cosine of the largest angle between a heading and what is stated."""


@dataclass(frozen=True)
class Detection:
    """One thing seen: shape in `SHAPE_CLASSES`, colour in `COLOR_CLASSES`, centre in pixels.

    ``confidence`` in [0, 1] is the product of the probabilities of the centre, the shape and the colour.
    """

    shape: str
    color: str
    x: float
    y: float
    confidence: float

    @property
    def valid(self) -> bool:
        """Whether this is, confidently, one of the four shapes in one of the four colours."""
        return self.shape != MALFORMED and self.color != OTHER and self.confidence >= CONFIDENCE_THRESHOLD


class Maps(NamedTuple):
    """Raw outputs on the grid (Y = X = SIZE / STRIDE).

    heat_BYX centre logits; offset_B2YX centre relative to the cell's middle, in cells (x, y); shape_BSYX and color_BKYX
    class logits.
    """

    heat_BYX: torch.Tensor
    offset_B2YX: torch.Tensor
    shape_BSYX: torch.Tensor
    color_BKYX: torch.Tensor


class HeldOutJudge(nn.Module):
    """Detector of the four shapes and colours; ``widths`` are the channels at 1/2, 1/4 and 1/8 resolution."""

    frames: ClassVar[int] = 1

    def __init__(self, widths: tuple[int, int, int] = (24, 40, 56), shapes=SHAPE_CLASSES, colors=COLOR_CLASSES):
        super().__init__()
        self.widths, self.classes = tuple(widths), (len(shapes), len(colors))
        fine, middle, coarse = self.widths
        self.fine = nn.Sequential(_convolution(3, fine, kernel=5, stride=2), _Residual(fine))
        self.middle = nn.Sequential(_convolution(fine, middle, stride=2), _Residual(middle))
        self.coarse = nn.Sequential(_convolution(middle, coarse, stride=2), _Residual(coarse))
        self.lateral = nn.Conv2d(coarse, middle, 1)
        self.head = nn.Sequential(_convolution(middle, middle), nn.Conv2d(middle, 3 + sum(self.classes), 1))
        nn.init.constant_(self.head[-1].bias[0], -4.0)  # centres are rare: 2 % to begin with
        self.to(memory_format=torch.channels_last)  # twice as fast on a CPU

    def forward(self, image_BCHW: torch.Tensor) -> Maps:
        """Maps of images (B, 3, SIZE, SIZE) in [0, 1]."""
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        middle = self.middle(self.fine((image_BCHW - 0.5) * 4))
        context = nn.functional.interpolate(self.lateral(self.coarse(middle)), scale_factor=2.0, mode="nearest")
        out = self.head(torch.relu(middle + context))
        heat, offset, shape, color = out.split((1, 2, *self.classes), dim=1)
        return Maps(heat[:, 0], offset, shape, color)

    def see(self, media_BFCHW: torch.Tensor) -> list[list[Detection]]:
        """What each frame of media (B, frames, 3, SIZE, SIZE), in [0, 1], holds; top to bottom. ValueError for other media."""
        image_BCHW = _as_images(media_BFCHW, self.frames).to(self.lateral.weight)
        if self.training:
            raise RuntimeError("held-out judge: call eval() before detect(); batch statistics would leak between images")
        with torch.no_grad():
            return [found for chunk in image_BCHW.split(_CHUNK) for found in _peaks(self(chunk))]

    def detect(self, media_BFCHW: torch.Tensor) -> list[list[Detection]]:
        """What each image (B, 1, 3, SIZE, SIZE), in [0, 1], holds; top to bottom. Raises ValueError for other media."""
        return self.see(media_BFCHW)

    @staticmethod
    def fulfils(found: list[Detection], spec: dict) -> bool:
        """Whether the detections are what a spec demands (see `fulfils`)."""
        return fulfils(found, spec)

    def verdict(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Whether each item is exactly what its prompt's spec demands: bool (B,), on the CPU.

        Right count, shapes and stated colours (a free colour is any of the four), stated relation and place (of a clip, motion),
        and nothing else.
        """
        if len(prompts) != len(media_BFCHW):
            raise ValueError(f"held-out judge: {len(media_BFCHW)} media but {len(prompts)} prompts")
        found = self.detect(media_BFCHW)
        return torch.tensor([self.fulfils(f, p.spec) for f, p in zip(found, prompts)], dtype=torch.bool)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"widths": list(self.widths), "shapes": list(SHAPE_CLASSES), "colors": list(COLOR_CLASSES)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> HeldOutJudge:
        """Load a saved judge, in eval mode. Raises FileNotFoundError, ValueError (made for other classes)."""
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"held-out judge: {folder / name} not found; train it with python -m reproduce.pretrain_embedded"
                )
        config = json.loads((folder / "config.json").read_text())
        for key, classes in (("shapes", SHAPE_CLASSES), ("colors", COLOR_CLASSES)):
            if tuple(config[key]) != classes:
                raise ValueError(f"held-out judge: {folder}/config.json has {key} {config[key]}, this code {list(classes)}")
        judge = cls(tuple(config["widths"]))
        judge.load_state_dict(load_file(folder / "model.safetensors"))
        return judge.eval()


def fulfils(found: list[Detection], spec: dict) -> bool:
    """Whether the detections are the spec's objects, one to one, in the stated relation, with nothing left over."""
    return any(
        _related(order, spec["relation"]) and _placed(order[0], spec["place"])
        for order in _orders(found, spec["objects"])
        if all(_looks(d, o) for d, o in zip(order, spec["objects"]))
    )


def _orders(found: list, wanted: list[dict]):
    """Every way of taking what was found, all of it valid, for what is wanted."""
    return itertools.permutations(found) if len(found) == len(wanted) and all(d.valid for d in found) else ()


def _looks(found: Detection | Track, wanted: dict) -> bool:
    return found.shape == wanted["shape"] and wanted["color"] in (None, found.color)


def _related(order: tuple[Detection, ...], relation: str | None) -> bool:
    if relation is None:
        return True
    dx, dy = order[1].x - order[0].x, order[1].y - order[0].y
    along, across = {"left of": (dx, dy), "above": (dy, dx)}[relation]
    return along > abs(across) + RELATION_MARGIN


def _placed(found: Detection, place: str | None) -> bool:
    """Whether a centre lies in the stated half or quarter of the picture."""
    beyond = {"left": found.x < SIZE / 2, "right": found.x > SIZE / 2, "top": found.y < SIZE / 2, "bottom": found.y > SIZE / 2}
    return all(beyond[side] for side in (place or "").split())


def _as_images(media_BFCHW: torch.Tensor, frames: int) -> torch.Tensor:
    """Checked media, frame after frame: (B · frames, 3, SIZE, SIZE)."""
    if media_BFCHW.ndim != 5 or tuple(media_BFCHW.shape[1:]) != (frames, 3, SIZE, SIZE):
        raise ValueError(f"held-out judge: media must be (B, {frames}, 3, {SIZE}, {SIZE}), got {tuple(media_BFCHW.shape)}")
    if not torch.isfinite(media_BFCHW).all():
        raise ValueError("held-out judge: media holds NaN or Inf")
    return media_BFCHW.flatten(0, 1)


def _peaks(maps: Maps) -> list[list[Detection]]:
    """Local maxima of the heat above the threshold, with the classes and offset of their cell."""
    heat = maps.heat_BYX.sigmoid()
    summit = heat == nn.functional.max_pool2d(heat, 3, stride=1, padding=1)
    shape, color = maps.shape_BSYX.softmax(1).max(1), maps.color_BKYX.softmax(1).max(1)
    confidence = heat * shape.values * color.values
    out: list[list[Detection]] = [[] for _ in heat]
    for b, y, x in (summit & (heat >= HEAT_THRESHOLD)).nonzero().tolist():
        dx, dy = maps.offset_B2YX[b, :, y, x].tolist()
        out[b].append(
            Detection(
                shape=SHAPE_CLASSES[shape.indices[b, y, x]],
                color=COLOR_CLASSES[color.indices[b, y, x]],
                x=STRIDE * (x + 0.5 + dx),
                y=STRIDE * (y + 0.5 + dy),
                confidence=float(confidence[b, y, x]),
            )
        )
    return out


def _convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            _convolution(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.body(x))


# --------------------------------------------------------------------------------------------------------------- clips


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
            for order in _orders(found, spec["objects"])
            if all(_looks(t, o) and t.moves_as(o) for t, o in zip(order, spec["objects"]))
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
