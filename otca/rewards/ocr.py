"""Text rendering: does the picture say what the prompt puts in quotation marks? Read by rapidocr, with models from its wheel."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from otca.errors import InputError
from otca.rewards.pixels import check_ratio, to_pictures
from otca.rewards.published import CARDS, PublishedReward
from otca.types import Prompt

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
SEARCHED, READ = 128, 2000  # longer side in pixels at most: where text is looked for, and where it is read
MAX_RATIO = 7  # from 7.5 on, the search for text rounds the shorter side of 128 pixels to 0, and finds nothing


class Ocr(PublishedReward):
    """1 − edit distance / length of the wanted text, at least 0; 1 where the wanted text is part of what is read.

    Letter case and spaces do not count. A video's score is the mean over its frames. Reads on the CPU, in torch's threads.
    """

    card = CARDS["ocr"]

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        from rapidocr import RapidOCR

        self.reader = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.log_level": "critical",
                "Global.max_side_len": READ,
                "Det.limit_side_len": SEARCHED,
                "Det.limit_type": "max",
                "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
            }
        )

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], float32 (B,). Raises InputError for prompts without quoted text and pictures beyond `MAX_RATIO`."""
        wanted = [wanted_text(prompt) for prompt in prompts]
        frames, _, height, width = media_BFCHW.shape[1:]
        check_ratio("ocr", width, height, MAX_RATIO)
        levels = [np.asarray(picture)[:, :, ::-1].copy() for picture in to_pictures(media_BFCHW.flatten(0, 1))]
        read = ["".join(self.reader(level_HWC).txts or ()) for level_HWC in levels]
        scores = [agreement(text, wanted[place // frames]) for place, text in enumerate(read)]
        return torch.tensor(scores).unflatten(0, (-1, frames)).mean(1)

    @staticmethod
    def check_prompt(prompt: Prompt) -> None:
        """Raise InputError for a prompt without quoted text."""
        wanted_text(prompt)


def wanted_text(prompt: Prompt) -> str:
    """The first text in quotation marks that is more than blanks. Raises InputError where there is none: nothing would say it."""
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
