"""Sizes beyond which media of others are refused unread: decompression bombs, and mistakes."""

from __future__ import annotations

from otca.errors import InputError

MAX_PIXELS = 64_000_000
"""Pixels of one picture or frame."""
MAX_FRAMES = 4096
"""Frames of one video."""
MAX_VIDEO_PIXELS = 256_000_000
"""Pixels of a video's frames, or of all media sent at once (3 GB as float32)."""


class TooLarge(InputError):
    """More than the limits allow."""
