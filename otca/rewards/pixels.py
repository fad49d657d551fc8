"""What published scorers do to a picture before their network sees it, on tensors: the numbers that Pillow would give.

Published preprocessing works on 8-bit Pillow images, and Pillow rounds to 8 bits after each of its two passes. `resize` does
the same arithmetic as matrix products, on whole batches and on any device, so that a score is that of the saved picture
without a file being written. Where the published code resizes a tensor instead of a picture, `resize_tensor` and
`interpolate` do.
Axes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import functional

Interpolation = Literal["bicubic", "bilinear"]
Fit = Literal["shortest", "longest", "squash"]
Crop = Literal["torchvision", "transformers"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Colour statistics that OpenAI's CLIP, and most models after it, are normalised by."""

_BITS = 22
"""Binary digits of a weight after the point, in Pillow's 8-bit resampling."""

_BAND = 16
"""Target pixels that are made together, from the few source pixels that any of them reads."""

_PLANES = 3
"""Planes that are resized together on a CPU, so that they stay in its cache."""


def to_pixels(media: torch.Tensor) -> torch.Tensor:
    """Media in [0, 1] as the 256 levels of a file, uint8 of the same shape."""
    return media.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def resize(pixel_NCHW: torch.Tensor, height: int, width: int, interpolation: Interpolation = "bicubic") -> torch.Tensor:
    """Pictures at another size, uint8 (N, C, height, width), equal to Pillow's ``resize`` of each bit for bit.

    Pillow 13 takes the vertical pass first where the height shrinks by more than twice what the width does; older versions
    never do, which moves single levels of tall pictures.
    """
    shrunk, narrowed = pixel_NCHW.shape[2] - height, pixel_NCHW.shape[3] - width
    passes = ((2, width), (1, height))
    passes = passes[::-1] if shrunk > max(0, 2 * narrowed) else passes
    plane_PHW = pixel_NCHW.flatten(0, 1)
    together = _PLANES if plane_PHW.device.type == "cpu" else max(1, len(plane_PHW))
    resized = [_resize_planes(part, passes, interpolation) for part in plane_PHW.split(together)]
    return torch.cat(resized).unflatten(0, pixel_NCHW.shape[:2])


def _resize_planes(plane_PHW: torch.Tensor, passes: tuple[tuple[int, int], ...], interpolation: Interpolation) -> torch.Tensor:
    """Planes (P, H, W) of 256 levels, as uint8, after the passes: (axis, its new size) each.

    Sums of whole numbers below 2^53, so exact in float64 in any order.
    """
    level_PHW = plane_PHW.double()
    for axis, size in passes:
        if level_PHW.shape[axis] != size:
            bands = [
                (level_PHW.narrow(axis, first, weight_OI.shape[1]), weight_OI.to(level_PHW.device))
                for first, weight_OI in _bands(level_PHW.shape[axis], size, interpolation)
            ]
            parts = [part @ weight_OI.T if axis == 2 else weight_OI @ part for part, weight_OI in bands]
            level_PHW = torch.cat(parts, axis).add_(2 ** (_BITS - 1)).mul_(2**-_BITS).floor_().clamp_(0, 255)
    return level_PHW.to(torch.uint8)


def resize_tensor(pixel_NCHW: torch.Tensor, height: int, width: int, interpolation: Interpolation = "bicubic") -> torch.Tensor:
    """Pictures at another size, float32 (N, C, height, width), as torchvision resizes a tensor.

    The weights are Pillow's, but nothing is rounded, and bicubic overshoot is kept. Before torchvision 0.17 a tensor was by
    default resized without antialiasing, which is another picture.
    """
    return functional.interpolate(pixel_NCHW.float(), (height, width), mode=interpolation, antialias=True)


def interpolate(pixel_NCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures at another size, uint8 (N, C, height, width), equal to torchvision's bicubic, antialiased resize of tensors.

    Pillow's kernel in float32; unlike `resize`, it does not round and clip between its two passes. Preprocessing of videos
    that never are Pillow images is published with it.
    """
    return resize_tensor(pixel_NCHW, height, width).clamp(0, 255).round().to(torch.uint8)


@lru_cache(maxsize=64)
def _weights(source: int, target: int, interpolation: Interpolation) -> torch.Tensor:
    """Weight of each source pixel in each target pixel, whole numbers of 2^−22: float64 (target, source)."""
    kernel, radius = {"bicubic": (_bicubic, 2.0), "bilinear": (_bilinear, 1.0)}[interpolation]
    scale = source / target
    stretch = max(scale, 1.0)
    weight_OI = torch.zeros(target, source, dtype=torch.float64)
    for row in range(target):
        center = (row + 0.5) * scale
        first = max(0, int(center - radius * stretch + 0.5))
        last = min(source, int(center + radius * stretch + 0.5))
        values = [kernel((i - center + 0.5) / stretch) for i in range(first, last)]
        total = sum(values)
        weight_OI[row, first:last] = torch.tensor([_rounded(v / total * 2**_BITS) for v in values], dtype=torch.float64)
    return weight_OI


@lru_cache(maxsize=64)
def _bands(source: int, target: int, interpolation: Interpolation) -> tuple[tuple[int, torch.Tensor], ...]:
    """`_weights` without most of its zeros: for each `_BAND` of target pixels the first source pixel read, and the weights."""
    out = []
    for weight_OI in _weights(source, target, interpolation).split(_BAND):
        read = weight_OI.any(0).nonzero()
        first, last = int(read[0]), int(read[-1])
        out.append((first, weight_OI[:, first : last + 1].contiguous()))
    return tuple(out)


def _rounded(value: float) -> int:
    """To the nearest whole number, halves away from zero."""
    return math.trunc(value + math.copysign(0.5, value))


def _bicubic(x: float) -> float:
    """Keys' cubic convolution with a = −1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _bilinear(x: float) -> float:
    return max(0.0, 1 - abs(x))


@dataclass(frozen=True)
class Preprocess:
    """From pictures of any size to a network's input.

    ``height``, ``width``: what the network takes; ``fit``: the shorter side fills it and the rest is cropped, the longer side
    fits it and the rest is padded with 0, or the picture is squashed into it; ``mean``, ``std``: of each channel in [0, 1];
    ``crop``: whose centre crop, which differ by a pixel where an odd margin is halved; ``rounded``: resized as a picture of
    256 levels (`resize`), or else as a tensor (`resize_tensor`).
    """

    height: int = 224
    width: int = 224
    interpolation: Interpolation = "bicubic"
    fit: Fit = "shortest"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    crop: Crop = "torchvision"
    rounded: bool = True

    def __call__(self, media_NCHW: torch.Tensor) -> torch.Tensor:
        """Media (N, 3, H, W) in [0, 1] → float32 (N, 3, height, width) on the same device."""
        pixel_NCHW = self._fitted(to_pixels(media_NCHW))
        mean, std = (torch.tensor(v, device=pixel_NCHW.device).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixel_NCHW.float() / 255 - mean) / std

    def _fitted(self, pixel_NCHW: torch.Tensor) -> torch.Tensor:
        height, width = pixel_NCHW.shape[2:]
        if self.fit == "squash":
            return self._resized(pixel_NCHW, self.height, self.width)
        if self.fit == "shortest":
            scale = max(self.height / height, self.width / width)
            inner = tuple(max(want, int(side * scale + 1e-6)) for side, want in ((height, self.height), (width, self.width)))
            return self._cropped(self._resized(pixel_NCHW, *inner))
        scale = min(self.height / height, self.width / width)
        pixel_NCHW = self._resized(pixel_NCHW, round(height * scale), round(width * scale))
        above, left = (self.height - pixel_NCHW.shape[2]) // 2, (self.width - pixel_NCHW.shape[3]) // 2
        out = pixel_NCHW.new_zeros(*pixel_NCHW.shape[:2], self.height, self.width)
        out[:, :, above : above + pixel_NCHW.shape[2], left : left + pixel_NCHW.shape[3]] = pixel_NCHW
        return out

    def _resized(self, pixel_NCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return (resize if self.rounded else resize_tensor)(pixel_NCHW, height, width, self.interpolation)

    def _cropped(self, pixel_NCHW: torch.Tensor) -> torch.Tensor:
        """The middle; torchvision halves an odd margin as Python rounds, transformers downwards."""
        half = round if self.crop == "torchvision" else math.floor
        above, left = half((pixel_NCHW.shape[2] - self.height) / 2), half((pixel_NCHW.shape[3] - self.width) / 2)
        return pixel_NCHW[:, :, above : above + self.height, left : left + self.width]
