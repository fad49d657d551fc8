"""A reward that lies, for the stress test: alignment turned round for a third of the images.

It keeps the name of the reward it corrupts, so that logs and tables have the same columns; evaluation scores with the honest one.
What is random depends on the image alone.
"""

from __future__ import annotations

import hashlib

import torch

from otca.rewards.base import build_reward
from otca.types import Prompt

SHARE = 1 / 3


class Flipped:
    """1 − alignment for a random third of the images."""

    name, range, source, licence, revision = "alignment", (0.0, 1.0), "this repository, reproduce/corrupted.py", "Apache-2.0", ""

    def __init__(self, device: torch.device | str = "cpu"):
        self.honest = build_reward("alignment", device)

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        honest_B = self.honest.score(media_BFCHW, prompts)
        pixels = (media_BFCHW * 255).round().to(torch.uint8).cpu().numpy()
        draws = [int.from_bytes(hashlib.sha256(one.tobytes()).digest()[:6], "big") / 2**48 for one in pixels]
        return torch.where(torch.tensor(draws, device=honest_B.device) < SHARE, 1 - honest_B, honest_B)
