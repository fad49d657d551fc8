"""What a folder of any system's media holds: pictures or videos, in nested folders too, each with its prompt."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.matching import GENEVAL, match_prompts
from eval.media import ANIMATIONS, CONTAINERS, DEFAULT_FPS, PICTURES, Video, is_animation, natural_key, read_picture, read_video
from otca.errors import InputError
from otca.types import Prompt

OTHER_MEDIA = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".jfif", ".mkv", ".webm", ".flv", ".m2ts", ".ts", ".ogv")
"""Endings that `mimetypes` may not know for media."""


@dataclass(frozen=True)
class Item:
    """A picture (``still``), a video or a folder of frames, with its prompt.

    ``name``: its path below the folder of them all; ``key``: of that, its content, its prompt and how it is turned.
    """

    path: Path
    name: str
    still: bool
    prompt: Prompt
    key: str
    upright: bool = True

    def read(self) -> Video:
        """Frames and rate. Raises InputError naming the file if it cannot be read."""
        return read_picture(self.path, self.upright) if self.still else read_video(self.path, DEFAULT_FPS, self.upright)


@dataclass(frozen=True)
class Found:
    """``items`` in natural order; names of those without a prompt (``orphans``) and of media that are not read (``unread``)."""

    items: list[Item]
    orphans: list[str]
    unread: list[str]


def find_items(place: Path, still: bool, prompts_file: Path, strict: bool = False, upright: bool = True) -> Found:
    """The pictures (``still``) or videos of a folder and of those below it, or of a file, with their prompts.

    Hidden files are passed over, and of GenEval's folders all but the samples (``grid.png`` shows them again). Videos are the
    items where a folder holds any; a folder of still frames alone is one video. Raises InputError if there are none, if prompts
    and files do not match (`eval.matching.match_prompts`), and with ``strict`` where any is without a prompt or not read.
    """
    what, search = ("images", _pictures) if still else ("videos", _videos)
    place = place if place.name else place.resolve()
    if not place.exists():
        raise InputError(f"{what} {place} not found")
    try:
        paths = [place] if place.is_file() else list(search(place, (place.resolve(),)))
    except OSError as error:
        raise InputError(f"{what} folder {error.filename or place} cannot be read ({error.strerror})") from error
    folder = place.parent if place in paths else place  # a file, or one folder of frames
    seen = {path.relative_to(folder).as_posix(): path for path in paths}
    names = sorted((name for name, path in seen.items() if _is_read(path, still)), key=natural_key)
    unread = sorted((name for name in seen if name not in names), key=natural_key)
    foreign = [name for name in names if name.encode(errors="replace").decode() != name]
    if foreign:
        raise InputError(f"{what} folder {place}: the name {foreign[0]!r} is not UTF-8, as rows are; rename the file")
    if not names:
        read = PICTURES if still else (*CONTAINERS, *ANIMATIONS, "or a sub-folder of frames for each")
        raise InputError(f"{what} folder {place} holds none that is read ({', '.join(read)}){_named(' but', unread)}")
    prompts = match_prompts(names, prompts_file, what)
    orphans = [name for name, prompt in zip(names, prompts) if prompt is None]
    if strict and (orphans or unread):
        raise InputError(
            f"{what} {place}: {len(orphans)} without a prompt in {prompts_file}{_named(',', orphans)}; "
            f"{len(unread)} not read{_named(',', unread)}; convert, move or list them, or leave out --strict"
        )
    pairs = [(name, prompt) for name, prompt in zip(names, prompts) if prompt]
    items = [Item(seen[name], name, still, prompt, _key(seen[name], name, prompt, upright), upright) for name, prompt in pairs]
    return Found(items, orphans, unread)


def _named(before: str, names: list[str]) -> str:
    return f"{before} {names[0]}" if names else ""


def _is_read(path: Path, still: bool) -> bool:
    return path.is_dir() or path.suffix.lower() in (PICTURES if still else (*CONTAINERS, *ANIMATIONS))


def _is_media(path: Path) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return kind.startswith(("image/", "video/")) or path.suffix.lower() in OTHER_MEDIA


def _pictures(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All media files, read or not."""
    paths = _listed(folder)
    samples = folder / "samples"
    for path in [samples] if GENEVAL.fullmatch(f"{folder.name}/samples") and samples in paths else paths:
        if path.is_dir() and path.resolve() not in above:
            yield from _pictures(path, (*above, path.resolve()))
        elif path.suffix.lower() in PICTURES or _is_media(path):
            yield path


def _videos(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Media files, and folders that are videos; a folder that holds nothing is one too, as its row will say."""
    paths = _listed(folder)
    below = [p for f in paths if f.is_dir() and f.resolve() not in above for p in _videos(f, (*above, f.resolve()))]
    files = [path for path in paths if path.is_file() and (_is_read(path, False) or _is_media(path))]
    moving = below or any(path.suffix.lower() in CONTAINERS or is_animation(path) for path in files)
    frames = any(path.suffix.lower() in PICTURES for path in files)
    if moving or (files and not frames):
        yield from (*below, *files)
    elif frames or len(above) > 1:
        yield folder
        yield from (path for path in files if path.suffix.lower() not in PICTURES)


def _listed(folder: Path) -> list[Path]:
    """What a folder holds and does not hide."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _key(path: Path, name: str, prompt: Prompt, upright: bool) -> str:
    facts = [name, prompt.text, prompt.spec, *([] if upright else ["as stored"])]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(os.fsencode(file.name) + file.read_bytes())
    except OSError as error:  # `Item.read` will say so
        digest.update(str(error).encode())
    return digest.hexdigest()
