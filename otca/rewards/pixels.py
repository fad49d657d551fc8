"""What published scorers do to a picture before their network sees it, on tensors: the numbers that Pillow would give.

Published preprocessing works on 8-bit Pillow images, and Pillow rounds to 8 bits after each of its two passes. `resize` does
the same arithmetic as matrix products, on whole batches and on any device, so that a score is that of the saved picture
without a file being written. Where the published code resizes a tensor instead of a picture, `resize_tensor` and
`interpolate` do.
Axes: N pictures, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch.nn import functional

from otca.errors import InputError
from otca.limits import MAX_PIXELS, TooLarge

Interpolation = Literal["bicubic", "bilinear"]
Fit = Literal["shortest", "longest", "squash"]
Crop = Literal["torchvision", "transformers"]
Window = tuple[int, int, int, int]
"""Top, left, height and width of a part."""
Bands = tuple[tuple[int, torch.Tensor], ...]
"""How an axis is resized: where pixels are read from, and their weights in the next few target pixels (targets, sources)."""

MAX_READ = 65_536
"""Rows or columns that a resized picture is made of at most; what a crop leaves out does not count."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Colour statistics that OpenAI's CLIP, and most models after it, are normalised by."""

_BITS = 22
"""Binary digits of a weight after the point, in Pillow's 8-bit resampling."""

_BAND = 16
"""Target pixels that are made together, from the few source pixels that any of them reads."""

_PLANES = 3
"""Planes that are resized together on a CPU, so that they stay in its cache."""

_LEVELS = 2**26
"""Pixels of the planes that are resized together, on any device: 0.5 GB as float64."""

_KEPT = 4096
"""Rows or columns up to which weights are kept for the next picture of that size: 0.7 MB a pair of sizes, 64 of them."""


def to_pixels(media: torch.Tensor) -> torch.Tensor:
    """Media in [0, 1] as the 256 levels of a file, uint8 of the same shape."""
    return media.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def resize(
    pixel_NCHW: torch.Tensor, height: int, width: int, interpolation: Interpolation = "bicubic", window: Window | None = None
) -> torch.Tensor:
    """Pictures at another size, uint8 (N, C, height, width), equal to Pillow's ``resize`` of each bit for bit.

    Of a ``window`` nothing but the window is made, from the source pixels that it depends on: uint8 (N, C, its height, its
    width), the same levels as cut from the whole. Pillow 13 takes the vertical pass first where the height shrinks by more than
    twice what the width does; older versions never do, which moves single levels of tall pictures.
    Raises TooLarge for more than `MAX_PIXELS` to be made, or more than `MAX_READ` rows or columns to be read.
    """
    top, left, tall, wide = window or (0, 0, height, width)
    _refuse_large(pixel_NCHW, tall, wide)
    rows, down = _pass(pixel_NCHW, 2, height, slice(top, top + tall), interpolation)
    columns, across = _pass(pixel_NCHW, 3, width, slice(left, left + wide), interpolation)
    shrunk, narrowed = pixel_NCHW.shape[2] - height, pixel_NCHW.shape[3] - width
    passes = ((2, across), (1, down))
    passes = passes[::-1] if shrunk > max(0, 2 * narrowed) else passes
    plane_PHW = pixel_NCHW[:, :, rows, columns].flatten(0, 1)
    together = min(_PLANES if plane_PHW.device.type == "cpu" else len(plane_PHW), _LEVELS // plane_PHW.shape[1:].numel())
    resized = [_resize_planes(part, passes) for part in plane_PHW.split(max(1, together))]
    return torch.cat(resized).unflatten(0, pixel_NCHW.shape[:2])


def _resize_planes(plane_PHW: torch.Tensor, passes: tuple[tuple[int, Bands], ...]) -> torch.Tensor:
    """Planes (P, H, W) of 256 levels, as uint8, after the passes: (axis, its bands) each.

    Sums of whole numbers below 2^53, so exact in float64 in any order.
    """
    level_PHW = plane_PHW.double()
    for axis, bands in passes:
        if bands:
            read = [
                (level_PHW.narrow(axis, first, weight_OI.shape[1]), weight_OI.to(level_PHW.device)) for first, weight_OI in bands
            ]
            parts = [part @ weight_OI.T if axis == 2 else weight_OI @ part for part, weight_OI in read]
            level_PHW = torch.cat(parts, axis).add_(2 ** (_BITS - 1)).mul_(2**-_BITS).floor_().clamp_(0, 255)
    return level_PHW.to(torch.uint8)


def _refuse_large(pixel_NCHW: torch.Tensor, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise TooLarge(
            f"a picture of {_said(pixel_NCHW)} would become {width}×{height}, and {MAX_PIXELS} pixels are the limit; "
            "crop it to a squarer one"
        )


def _said(pixel_NCHW: torch.Tensor) -> str:
    return f"{pixel_NCHW.shape[3]}×{pixel_NCHW.shape[2]}"


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


def _pass(pixel_NCHW: torch.Tensor, axis: int, target: int, wanted: slice, interpolation: Interpolation) -> tuple[slice, Bands]:
    """What part of an axis the ``wanted`` ones of its ``target`` pixels are made of, and the bands that make them of that part.

    No bands where the axis keeps its size. Raises TooLarge for a part of more than `MAX_READ`.
    """
    source = pixel_NCHW.shape[axis]
    if source == target:
        return wanted, ()
    first, last = (_read(source, target, pixel, interpolation)[end] for end, pixel in enumerate((wanted.start, wanted.stop - 1)))
    if last - first > MAX_READ:
        raise TooLarge(
            f"a picture of {_said(pixel_NCHW)} has {last - first} pixels in a row that {wanted.stop - wanted.start} are made of; "
            f"the limit is {MAX_READ}: crop or shrink it first"
        )
    kept = max(last - first, wanted.stop - wanted.start) <= _KEPT
    made = (_bands if kept else _bands.__wrapped__)(source, target, wanted.start, wanted.stop, interpolation)
    return slice(first, last), tuple((start - first, weight_OI) for start, weight_OI in made)


def _read(source: int, target: int, pixel: int, interpolation: Interpolation) -> tuple[int, int]:
    """First and one past the last of the ``source`` pixels that one of the ``target`` pixels is made of."""
    scale = source / target
    center, reach = (pixel + 0.5) * scale, _KERNELS[interpolation][1] * max(scale, 1.0)
    return max(0, int(center - reach + 0.5)), min(source, int(center + reach + 0.5))


@lru_cache(maxsize=64)
def _bands(source: int, target: int, start: int, stop: int, interpolation: Interpolation) -> Bands:
    """Of each `_BAND` of the target pixels from ``start`` to ``stop`` the first source pixel that is read, and the weights.

    Weights are whole numbers of 2^−22, float64 (targets of the band, sources that any of them reads).
    """
    kernel, scale = _KERNELS[interpolation][0], source / target
    out = []
    for above in range(start, stop, _BAND):
        pixels = range(above, min(above + _BAND, stop))
        reads = [_read(source, target, pixel, interpolation) for pixel in pixels]
        begin = reads[0][0]
        weight_OI = torch.zeros(len(pixels), reads[-1][1] - begin, dtype=torch.float64)
        for row, (pixel, (first, last)) in enumerate(zip(pixels, reads)):
            center = (pixel + 0.5) * scale
            values = [kernel((i - center + 0.5) / max(scale, 1.0)) for i in range(first, last)]
            total = sum(values)
            whole = [_rounded(value / total * 2**_BITS) for value in values]
            weight_OI[row, first - begin : last - begin] = torch.tensor(whole, dtype=torch.float64)
        out.append((begin, weight_OI))
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


_KERNELS: dict[str, tuple[Callable[[float], float], float]] = {"bicubic": (_bicubic, 2.0), "bilinear": (_bilinear, 1.0)}
"""Weight at a distance, and the distance at which it ends."""


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
        """Media (N, 3, H, W) in [0, 1] → float32 (N, 3, height, width) on the same device.

        Of a picture that is cropped, only what the crop leaves is resized. Raises InputError for a picture so thin that nothing
        would be left of a side, and TooLarge as `resize` does.
        """
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
            return self._resized(pixel_NCHW, *inner, self._middle(*inner))
        scale = min(self.height / height, self.width / width)
        inner = round(height * scale), round(width * scale)
        if min(inner) < 1:
            raise InputError(
                f"a picture of {_said(pixel_NCHW)} is too thin for {self.width}×{self.height}: its shorter side would be 0; "
                "crop it to a squarer one"
            )
        pixel_NCHW = self._resized(pixel_NCHW, *inner)
        above, left = (self.height - inner[0]) // 2, (self.width - inner[1]) // 2
        out = pixel_NCHW.new_zeros(*pixel_NCHW.shape[:2], self.height, self.width)
        out[:, :, above : above + inner[0], left : left + inner[1]] = pixel_NCHW
        return out

    def _resized(self, pixel_NCHW: torch.Tensor, height: int, width: int, window: Window | None = None) -> torch.Tensor:
        if self.rounded:
            return resize(pixel_NCHW, height, width, self.interpolation, window)
        _refuse_large(pixel_NCHW, height, width)  # torch makes all of it
        top, left, tall, wide = window or (0, 0, height, width)
        return resize_tensor(pixel_NCHW, height, width, self.interpolation)[:, :, top : top + tall, left : left + wide]

    def _middle(self, height: int, width: int) -> Window:
        """What the crop leaves; torchvision halves an odd margin as Python rounds, transformers downwards."""
        half = round if self.crop == "torchvision" else math.floor
        return half((height - self.height) / 2), half((width - self.width) / 2), self.height, self.width
