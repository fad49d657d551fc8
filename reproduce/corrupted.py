"""Rewards of the stress tests: one objective of the embedded image task that lies, shouts, or hardly speaks.

Each keeps the name of the reward it corrupts, so that logs and tables have the same columns; evaluation scores with the
honest ones. What is random depends on the image alone, so the completions of a sample's states are drawn for one by one.
"""

from __future__ import annotations

import hashlib

import torch

from otca.tasks.rewards import Aesthetic, Alignment, Quality
from otca.types import Prompt


def _draws_B(media_BFCHW: torch.Tensor) -> torch.Tensor:
    """A uniform number in [0, 1) from the pixels, in 8 bits, of each image: (B,)."""
    pixels = (media_BFCHW * 255).round().to(torch.uint8).cpu().numpy()
    digests = [hashlib.sha256(one.tobytes()).digest()[:6] for one in pixels]
    return torch.tensor([int.from_bytes(digest, "big") / 2**48 for digest in digests], dtype=torch.float32)


class NoiseAesthetic(Aesthetic):
    """Replaced by uniform noise."""

    source = "this repository, reproduce/corrupted.py"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Noise in [0, 1), (B,)."""
        return _draws_B(media_BFCHW)


class FlippedAlignment(Alignment):
    """1 − alignment for a random third of the images."""

    source = "this repository, reproduce/corrupted.py"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], (B,)."""
        honest_B = super().score(media_BFCHW, prompts)
        return torch.where(_draws_B(media_BFCHW) < 1 / 3, 1 - honest_B, honest_B)


class ScaledAesthetic(Aesthetic):
    """A hundred times the aesthetic reward."""

    range = (0.0, 100.0)
    source = "this repository, reproduce/corrupted.py"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 100], (B,)."""
        return 100 * super().score(media_BFCHW, prompts)


class ConstantQuality(Quality):
    """A thousandth of the quality around one half: nearly constant, still in the right order."""

    source = "this repository, reproduce/corrupted.py"

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0.4995, 0.5005], (B,)."""
        return 0.5 + 1e-3 * (super().score(media_BFCHW, prompts) - 0.5)
