"""Media as tensors, as 8-bit levels and as Pillow's pictures, which published preprocessing works on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from otca.errors import InputError

MAX_PIXELS = 64_000_000
"""Pixels of one picture or frame; media beyond these limits are refused unread: decompression bombs, and mistakes."""
MAX_FRAMES = 4096  # frames of one video
MAX_VIDEO_PIXELS = 256_000_000  # pixels of a video's frames, or of all media sent at once (3 GB as float32)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Colour statistics that OpenAI's CLIP, and most models after it, are normalised by."""


class TooLarge(InputError):
    """Media beyond the limits."""


def to_pixels(media: torch.Tensor) -> torch.Tensor:
    """Media in [0, 1] as the 256 levels of a file, uint8 of the same shape."""
    return media.mul(255).round_().clamp_(0, 255).to(torch.uint8)


def to_pictures(media_NCHW: torch.Tensor) -> list[Image.Image]:
    """The pictures that these media (N, 3, H, W) in [0, 1] would be saved as."""
    return [Image.fromarray(pixel_HWC) for pixel_HWC in to_pixels(media_NCHW).permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def preprocessed(pictures: Sequence[Image.Image], transform: Callable[[Image.Image], torch.Tensor], side: int) -> torch.Tensor:
    """Network inputs (N, 3, h, w) by a published transform, which resizes to about ``side`` pixels a side before it crops.

    Raises TooLarge for a picture so thin that its shorter side would be enlarged beyond all bounds, and InputError for one of
    which nothing would be left.
    """
    for picture in pictures:
        ratio = max(picture.size) / min(picture.size)
        if ratio * side**2 > MAX_PIXELS:
            raise TooLarge(
                f"a picture of {picture.width}×{picture.height} would have more than {MAX_PIXELS} pixels with its shorter side "
                f"at {side}; crop it to a squarer one"
            )
    try:
        return torch.stack([transform(picture) for picture in pictures])
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(
            f"a picture of {pictures[0].width}×{pictures[0].height} is too thin for {side}×{side}; crop it"
        ) from error
