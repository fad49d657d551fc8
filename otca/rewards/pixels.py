"""Media as 8-bit levels and as Pillow's pictures, which published preprocessing works on; how large media may be."""

from __future__ import annotations

import torch
from PIL import Image

from otca.errors import InputError

MAX_PIXELS = 64_000_000
"""Pixels of one picture or frame; media beyond these limits are refused unread: decompression bombs, and mistakes."""
MAX_FRAMES = 4096  # frames of one video
MAX_VIDEO_PIXELS = 256_000_000  # pixels of all media sent at once (3 GB as float32)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Colour statistics that OpenAI's CLIP, and most models after it, are normalised by."""


def to_pixels(media: torch.Tensor) -> torch.Tensor:
    """Media in [0, 1] as the 256 levels of a file, uint8 of the same shape."""
    return media.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def to_pictures(media_NCHW: torch.Tensor) -> list[Image.Image]:
    """The pictures that these media (N, 3, H, W) in [0, 1] would be saved as."""
    return [Image.fromarray(pixel_HWC) for pixel_HWC in to_pixels(media_NCHW).permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def check_ratio(who: str, width: int, height: int, most: int) -> None:
    """Raise InputError for a picture too thin to be scored: once its shorter side is resized, it would be all length."""
    if max(width, height) > most * min(width, height):
        raise InputError(f"{who}: a picture of {width}×{height} is too thin; one side may be {most} times the other, so crop it")
