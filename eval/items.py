"""What a folder of any system's media holds: pictures or videos, in nested folders too, each with its prompt."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from eval.media import ENDINGS, GENEVAL, match_prompts, read_picture
from eval.videos import DEFAULT_FPS, FRAME_ENDINGS, VIDEO_ENDINGS, Video, natural_key, read_video
from otca.errors import InputError
from otca.types import Prompt


@dataclass(frozen=True)
class Item:
    """A picture (``still``), a video or a folder of frames, with its prompt if a list names one.

    ``name``: its path below the folder of them all; ``key``: of that, its content and its prompt.
    """

    path: Path
    name: str
    still: bool
    prompt: Prompt | None
    key: str

    def read(self) -> Video:
        """Frames and rate; a picture is one frame of rate 0. Raises InputError naming the file if it cannot be read."""
        if self.still:
            return Video(torch.from_numpy(read_picture(self.path)).unsqueeze(0), 0.0)
        return read_video(self.path, DEFAULT_FPS)


def image_items(folder: Path, prompts_file: Path | None = None, strict: bool = False) -> tuple[list[Item], list[str]]:
    """The pictures of a folder and of those below it, in natural order, and the names of those without a prompt.

    Hidden ones are passed over, and of GenEval's folders all but the samples (``grid.png`` shows them again). Raises InputError
    if there are none, or if prompts and files do not match as `eval.media.match_prompts` says.
    """
    return _items(folder, "images", _pictures, ENDINGS, prompts_file, strict)


def video_items(folder: Path, prompts_file: Path | None = None, strict: bool = False) -> tuple[list[Item], list[str]]:
    """The videos of a folder and of those below it, folders of frames among them; the rest as for images."""
    return _items(folder, "videos", _videos, (*VIDEO_ENDINGS, "or a sub-folder of frames for each"), prompts_file, strict)


Search = Callable[[Path, tuple[Path, ...]], Iterator[Path]]
"""From a folder, and the folders that it lies in, to the media in it."""


def _items(
    folder: Path, what: str, search: Search, endings: Sequence[str], prompts_file: Path | None, strict: bool
) -> tuple[list[Item], list[str]]:
    if not folder.is_dir():
        raise InputError(f"{what} folder {folder} not found")
    try:
        seen = {path.relative_to(folder).as_posix(): path for path in search(folder, (folder.resolve(),))}
    except OSError as error:
        raise InputError(f"{what} folder {error.filename or folder} cannot be read ({error.strerror})") from error
    foreign = [name for name in seen if not _is_text(name)]
    if foreign:
        raise InputError(f"{what} folder {folder}: the name {foreign[0]!r} is not UTF-8, as rows are; rename the file")
    names = sorted(seen, key=natural_key)
    if not names:
        raise InputError(f"{what} folder {folder} holds no {what.removesuffix('s')} ({', '.join(endings)})")
    prompts = match_prompts(names, prompts_file, what, strict) if prompts_file else [None] * len(names)
    pairs = [(name, prompt) for name, prompt in zip(names, prompts) if prompt or not prompts_file]
    items = [Item(seen[name], name, what == "images", prompt, _key(seen[name], name, prompt)) for name, prompt in pairs]
    return items, [name for name, prompt in zip(names, prompts) if prompts_file and prompt is None]


def _pictures(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    paths = _listed(folder)
    samples = folder / "samples"
    for path in [samples] if GENEVAL.fullmatch(f"{folder.name}/samples") and samples in paths else paths:
        if path.suffix.lower() in ENDINGS:
            yield path
        elif path.is_dir() and path.resolve() not in above:
            yield from _pictures(path, (*above, path.resolve()))


def _videos(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """A folder of frames is a video; so is one that holds no video either, as its row will say."""
    for path in _listed(folder):
        if path.suffix.lower() in VIDEO_ENDINGS:
            yield path
        elif path.is_dir() and path.resolve() not in above:
            frames = any(file.suffix.lower() in FRAME_ENDINGS for file in _listed(path))
            below = [] if frames else list(_videos(path, (*above, path.resolve())))
            yield from below or [path]


def _listed(folder: Path) -> list[Path]:
    """What a folder holds and does not hide."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _key(path: Path, name: str, prompt: Prompt | None) -> str:
    digest = hashlib.sha256(json.dumps([name, prompt and prompt.text, prompt and prompt.spec], sort_keys=True).encode())
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(os.fsencode(file.name) + file.read_bytes())
    except OSError as error:  # `Item.read` will say so
        digest.update(str(error).encode())
    return digest.hexdigest()


def _is_text(name: str) -> bool:
    """Whether the bytes of a file's name are UTF-8; others come as lone surrogates."""
    return name.encode(errors="replace").decode() == name
