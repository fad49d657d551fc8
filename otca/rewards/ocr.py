"""Text rendering: does the picture say what the prompt puts in quotation marks? Read by rapidocr, with models from its wheel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from otca.errors import InputError
from otca.rewards.pixels import to_pictures
from otca.rewards.published import CARDS, PublishedReward
from otca.types import Prompt

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')
SHRUNK, SHRUNK_STRIP, READ = 128, 1024, 2000
"""Longer side in pixels at most: where text is looked for, on pictures and on strips, and where it is read."""
RATIO, MOST_RATIO = 7, 100
"""Longer over shorter side: of pictures that are no strips (from 7.5 on, the shorter side of 128 would be rounded to 0 by the
search for text); beyond which one is refused, as its text would be read from less than 20 rows of pixels."""


class Ocr(PublishedReward):
    """1 − edit distance / length of the wanted text, at least 0; 1 where the wanted text is part of what is read.

    Letter case and spaces do not count. A video's score is the mean over its frames. A picture whose sides differ by more than
    `RATIO` is read on a ground of its border's colour. Reads on the CPU, in as many threads as torch has.
    """

    card = CARDS["ocr"]

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        self.reader = make_reader(SHRUNK)

    @cached_property
    def reader_of_strips(self):
        """Reads pictures beyond `RATIO`, on which letters are no higher than the shorter side; made for the first of them."""
        return make_reader(SHRUNK_STRIP)

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores in [0, 1], float32 (B,). Raises InputError for prompts without quoted text and pictures beyond `MOST_RATIO`."""
        wanted = [wanted_text(prompt) for prompt in prompts]
        frames, _, height, width = media_BFCHW.shape[1:]
        if max(height, width) > MOST_RATIO * min(height, width):
            raise InputError(
                f"a picture of {width}×{height} is too thin to be read: one side may be {MOST_RATIO} times the other; crop it"
            )
        read = [self.read(picture) for picture in to_pictures(media_BFCHW.flatten(0, 1))]
        scores = [agreement(text, wanted[place // frames]) for place, text in enumerate(read)]
        return torch.tensor(scores).unflatten(0, (-1, frames)).mean(1)

    @staticmethod
    def check_prompt(prompt: Prompt) -> None:
        """Raise InputError for a prompt without quoted text."""
        wanted_text(prompt)

    def read(self, picture: Image.Image) -> str:
        """All text of a picture, in reading order."""
        reader = self.reader
        if max(picture.size) > RATIO * min(picture.size):
            reader, picture = self.reader_of_strips, grounded(picture)
        return "".join(reader(np.asarray(picture)[:, :, ::-1].copy()).txts or ())


def make_reader(longest_side: int):
    """rapidocr with the models of its wheel; text is looked for at a size of at most ``longest_side`` pixels a side."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.use_cls": False,
            "Global.log_level": "critical",
            "Global.max_side_len": READ,
            "Det.limit_side_len": longest_side,
            "Det.limit_type": "max",
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
    )


def grounded(picture: Image.Image) -> Image.Image:
    """A strip amid a ground of its border's median colour: one side is at most `RATIO` times the other.

    It is first shrunk to the size at which it would be read, so that the ground cannot become large.
    """
    shrink = READ / max(picture.size)
    if shrink < 1:
        picture = picture.resize([max(1, round(side * shrink)) for side in picture.size], Image.Resampling.BICUBIC)
    width, height = picture.size
    pixel_HWC = np.asarray(picture)
    border = pixel_HWC[[0, -1]].reshape(-1, 3) if width > height else pixel_HWC[:, [0, -1]].reshape(-1, 3)
    wide, tall = max(width, math.ceil(height / RATIO)), max(height, math.ceil(width / RATIO))
    out = Image.new("RGB", (wide, tall), tuple(np.median(border, axis=0).astype(int).tolist()))
    out.paste(picture, ((wide - width) // 2, (tall - height) // 2))
    return out


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
