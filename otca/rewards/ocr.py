"""Text rendering: does the picture say what the prompt puts in quotation marks? Read by rapidocr, with models from its wheel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from otca.errors import InputError
from otca.rewards.pixels import to_pixels
from otca.rewards.published import Card, PublishedReward
from otca.types import Prompt

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
LONGEST_SIDE = 128
"""Pixels to which a picture is shrunk before text is looked for; text is then read at full size."""


class Ocr(PublishedReward):
    """1 − edit distance / length of the wanted text, at least 0; 1 where the wanted text is part of what is read.

    Letter case and spaces do not count. A video's score is the mean over its frames. Reads on the CPU, in as many threads
    as torch has. Licence of code and models: Apache-2.0.
    """

    card = Card(
        name="ocr",
        measures="the text in quotation marks is written in the picture",
        medium="both",
        range=(0.0, 1.0),
        source="Flow-GRPO's text-rendering reward (arXiv 2505.05470), with PP-OCR's small models through rapidocr",
        licence="Apache-2.0",
        memory=0.1,
        files=(),
        package="rapidocr",
    )

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        from rapidocr import RapidOCR

        self.reader = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.log_level": "critical",
                "Det.limit_side_len": LONGEST_SIDE,
                "Det.limit_type": "max",
                "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
            }
        )

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], float32 (B,). Raises InputError for a prompt without quoted text."""
        wanted = [wanted_text(prompt) for prompt in prompts]
        pixel_BFHWC = to_pixels(media_BFCHW).permute(0, 1, 3, 4, 2).cpu().numpy()
        scores = [[agreement(self.read(frame), text) for frame in frames] for frames, text in zip(pixel_BFHWC, wanted)]
        return torch.tensor(scores).mean(1)

    @staticmethod
    def check_prompt(prompt: Prompt) -> None:
        """Raise InputError for a prompt without quoted text."""
        wanted_text(prompt)

    def read(self, pixel_HWC) -> str:
        """All text of a picture (uint8, RGB), in reading order."""
        return "".join(self.reader(pixel_HWC[:, :, ::-1].copy()).txts or ())


def wanted_text(prompt: Prompt) -> str:
    """The first text in quotation marks that is more than blanks. Raises InputError where there is none.

    Any picture would say nothing but blanks.
    """
    quoted = [found[1] or found[2] for found in QUOTED.finditer(prompt.text)]
    wanted = next((text for text in quoted if text.strip()), None)
    if wanted is None:
        what = "only blanks" if quoted else "no text"
        raise InputError(f'prompt {prompt.id!r} has {what} in quotation marks; ocr needs a text, as in: a sign that says "STOP"')
    return wanted


def agreement(read: str, wanted: str) -> float:
    """1 where ``wanted`` is part of ``read``, else 1 − min(edit distance, its length) / its length; case and spaces aside."""
    from rapidfuzz.distance import Levenshtein

    read, wanted = ("".join(text.split()).lower() for text in (read, wanted))
    return 1.0 if wanted in read else 1 - min(Levenshtein.distance(read, wanted), len(wanted)) / len(wanted)
