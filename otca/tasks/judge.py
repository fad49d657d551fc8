"""The held-out judge: a small learned detector that says whether an image holds exactly what its spec demands.

It gives the accuracy in the tables and never a training reward. One convolutional network predicts, on a 16×16 grid, where
things are, which of the four shapes each is (or ``malformed``) and which of the four colours it has (or ``other``). A
malformed or off-palette thing is detected too, so that it makes an image wrong instead of going unseen. `video_judge.py` looks
at every frame of a clip. Trained by `reproduce/pretrain/judge.py`.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from otca.tasks.scenes import COLORS, SHAPES, SIZE
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
        for order in orders(found, spec["objects"])
        if all(looks_like(d, o) for d, o in zip(order, spec["objects"]))
    )


def orders(found: list, wanted: list[dict]):
    """Every way of taking what was found, all of it valid, for what is wanted."""
    return itertools.permutations(found) if len(found) == len(wanted) and all(d.valid for d in found) else ()


def looks_like(found, wanted: dict) -> bool:
    """Whether what was found, a detection or a track, has the demanded shape and, if one is stated, colour."""
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
