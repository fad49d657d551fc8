"""Read a folder of images made by any system, matched to a prompts file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from otca.errors import InputError
from otca.prompts import load_prompts
from otca.types import Prompt

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 64_000_000
"""Larger images are refused unread (decompression bombs)."""


def read_images(folder: Path, prompts_file: Path) -> tuple[torch.Tensor, list[Prompt], list[str]]:
    """Media (B, 1, 3, H, W) in [0, 1], one prompt an image, and the file names, in file order.

    A row's ``file`` names its image; without it, row ``id`` owns ``<id>.*`` and ``<id>_<number>.*``. Raises InputError for
    images without a prompt, prompts without an image, unreadable files and mixed sizes.
    """
    if not folder.is_dir():
        raise InputError(f"images folder {folder} not found")
    found = {p.name: p for p in sorted(folder.iterdir()) if p.suffix.lower() in ENDINGS}
    if not found:
        raise InputError(f"images folder {folder} holds no image ({', '.join(ENDINGS)})")
    listed = load_prompts(str(prompts_file))
    by_file = {p.file: p for p in listed if p.file}
    by_id = {p.id: p for p in listed if not p.file}
    prompts = [by_file.get(name) or _by_stem(Path(name).stem, by_id) for name in found]
    orphans = [name for name, prompt in zip(found, prompts) if prompt is None]
    if orphans:
        raise InputError(f"{folder}: {len(orphans)} images have no prompt in {prompts_file}, the first is {orphans[0]}")
    absent = [name for name in by_file if name not in found]
    if absent:
        raise InputError(f"{prompts_file}: {len(absent)} files are not in {folder}, the first is {absent[0]}")
    images = [_read(path) for path in found.values()]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise InputError(
            f"{folder}: images of different sizes ({', '.join(f'{w}×{h}' for _, h, w in sorted(sizes)[:3])}); score them apart"
        )
    return torch.from_numpy(np.stack(images)).unsqueeze(1), prompts, list(found)


def _by_stem(stem: str, by_id: dict[str, Prompt]) -> Prompt | None:
    head, _, tail = stem.rpartition("_")
    return by_id.get(stem) or (by_id.get(head) if tail.isdigit() else None)


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"image {path} has {image.width}×{image.height} pixels, more than {MAX_PIXELS}")
            return np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"image {path} cannot be read ({error})") from error
