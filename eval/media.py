"""Read images made by any system, and match media to a prompts file."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from otca.errors import InputError, one_line
from otca.limits import MAX_PIXELS
from otca.prompts import load_prompts
from otca.types import Prompt

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What is decoded, whatever the ending says; Pillow alone would try fifty formats more, and run Ghostscript for one of them."""
GENEVAL = re.compile(r"(\d{5})/samples")
"""Folder where GenEval keeps the pictures of a prompt, numbered from 0 on."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `MAX_PIXELS` is lower, and refuses


def quantise(media_BFCHW: torch.Tensor) -> torch.Tensor:
    """Round to the 256 levels of a file, so that scores of tensors and of files agree."""
    return (media_BFCHW * 255).round() / 255


def match_prompts(names: list[str], prompts_file: Path, what: str, strict: bool = False) -> list[Prompt | None]:
    """The prompt of each file or folder, named by its path below the folder of them all; None where there is none.

    A row's ``file`` is that path. Else the folders that it lies in tell the prompt, the nearest first, or the name itself: a
    row's ``id`` owns ``<id>.*`` and ``<id>_<number>.*``, its text ``<text>.*`` and ``<text>-<number>.*``, as VBench has it (the
    first row of a text that comes twice). In lists without ids GenEval's folders count the rows: ``00000/samples/…`` is of the
    first. ``what`` names the media in messages. Raises InputError for rows whose file is absent, and where no name has a prompt;
    with ``strict``, where any has none.
    """
    listed = load_prompts(str(prompts_file))
    by_file = {p.file: p for p in listed if p.file}
    by_id = {p.id: p for p in listed if not p.file}
    by_text = {p.text: p for p in reversed(listed) if not p.file}
    counted = all(p.id == f"{number:06d}" and not p.file for number, p in enumerate(listed, start=1))

    def found(name: str) -> Prompt | None:
        *folders, last = name.split("/")
        for folder in reversed(folders):
            if prompt := by_id.get(folder) or _by_text(folder, by_text):
                return prompt
        row = GENEVAL.fullmatch("/".join(folders[-2:])) if counted else None
        if row and int(row[1]) < len(listed):
            return listed[int(row[1])]
        return by_id.get(last) or _by_stem(Path(last).stem, by_id) or _by_text(last, by_text)

    prompts = [by_file.get(name) or found(name) for name in names]
    orphans = [name for name, prompt in zip(names, prompts) if prompt is None]
    if orphans and (strict or len(orphans) == len(names)):
        raise InputError(f"{len(orphans)} {what} have no prompt in {prompts_file}, the first is {orphans[0]}")
    absent = sorted(by_file.keys() - set(names))
    if absent:
        raise InputError(f"{prompts_file}: {len(absent)} files are not among the {what}, the first is {absent[0]}")
    return prompts


def _by_stem(stem: str, by_id: dict[str, Prompt]) -> Prompt | None:
    head, _, tail = stem.rpartition("_")
    return by_id.get(stem) or (by_id.get(head) if tail.isdigit() else None)


def _by_text(name: str, by_text: dict[str, Prompt]) -> Prompt | None:
    """The text may end in a dot, which makes the end of a folder's name look like a file's."""
    for stem in (name, Path(name).stem):
        head, _, tail = stem.rpartition("-")
        if found := by_text.get(stem) or (by_text.get(head) if tail.isdigit() else None):
            return found
    return None


def read_picture(path: Path) -> np.ndarray:
    """RGB pixels (3, H, W) float32 in [0, 1]; transparency is left out, and of 16 bits the upper 8 are kept.

    Raises InputError for what is no picture of `ENDINGS`, damaged, animated or too large, which is seen before it is decoded.
    """
    if not os.path.isfile(path):
        raise InputError(f"image {path} cannot be read (it is missing, or no file)")
    try:
        with Image.open(path, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"image {path} has {image.width}×{image.height} pixels, more than {MAX_PIXELS}")
            if getattr(image, "is_animated", False) and image.format != "MPO":  # JPEG files of cameras, with a preview
                raise InputError(f"image {path} is an animation of {image.n_frames} pictures; give it as a video, or one of them")
            if image.mode == "I;16":  # Pillow would make all but the darkest 256 levels white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    except InputError:
        raise
    except Exception as error:  # decoders of foreign bytes raise many kinds
        raise InputError(f"image {path} cannot be read ({one_line(error)})") from error
