"""What a folder of any system's media holds: pictures or videos, in nested folders too, each with its prompt."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.media import ANIMATIONS, CONTAINERS, PICTURES, Video, is_animation, natural_key, read_picture, read_video
from otca.errors import InputError
from otca.prompts import load_prompts
from otca.types import Prompt
from otca.untrusted import read_json, read_text

OTHER_MEDIA = (
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".jfif", ".psd", ".tga", ".exr", ".ppm", ".pgm", ".svg", ".dng"),
    *(".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".m2ts", ".mts", ".ts", ".ogv", ".3gp", ".vob", ".y4m"),
)
"""Endings that `mimetypes` may not know for media."""
GENEVAL = re.compile(r"(\d{5})/samples")
"""Folder where GenEval keeps the pictures of a prompt, numbered from 0 on."""
NUMBERED = re.compile(r"(\d+)(?:_\d+)?")
"""Stem of the file of a row's number, and of one of several samples."""


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
        return read_picture(self.path, self.upright) if self.still else read_video(self.path, upright=self.upright)


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
    and files do not match (`match_prompts`), and with ``strict`` where any is without a prompt or not read.
    """
    what, endings = ("images", PICTURES) if still else ("videos", (*CONTAINERS, *ANIMATIONS))
    place = place if place.name else place.resolve()
    if not place.exists():
        raise InputError(f"{what} {place} not found")
    try:
        paths = [place] if place.is_file() else list((_pictures if still else _videos)(place, (place.resolve(),)))
    except OSError as error:
        raise InputError(f"{what} folder {error.filename or place} cannot be read ({error.strerror})") from error
    folder = place.parent if place in paths else place  # a file, or one folder of frames
    seen = {path.relative_to(folder).as_posix(): path for path in sorted(paths, key=lambda path: natural_key(path.as_posix()))}
    readable = {name: path.is_dir() or path.suffix.lower() in endings for name, path in seen.items()}
    names, unread = ([name for name, read in readable.items() if read == wanted] for wanted in (True, False))
    foreign = [name for name in names if name.encode(errors="replace").decode() != name]
    if foreign:
        raise InputError(f"{what} folder {place}: the name {foreign[0]!r} is not UTF-8, as rows are; rename the file")
    if not names:
        read = (*endings, *([] if still else ["or a sub-folder of frames for each"]))
        raise InputError(f"{what} folder {place} holds none that is read ({', '.join(read)}){_first(' but', unread)}")
    prompts = match_prompts(names, prompts_file, what)
    orphans = [name for name, prompt in zip(names, prompts) if prompt is None]
    if strict and (orphans or unread):
        raise InputError(
            f"{what} {place}: {len(orphans)} without a prompt in {prompts_file}{_first(',', orphans)}; "
            f"{len(unread)} not read{_first(',', unread)}; convert, move or list them, or leave out --strict"
        )
    pairs = [(name, prompt) for name, prompt in zip(names, prompts) if prompt]
    items = [Item(seen[name], name, still, prompt, _key(seen[name], name, prompt, upright), upright) for name, prompt in pairs]
    return Found(items, orphans, unread)


def _first(before: str, names: list[str]) -> str:
    return f"{before} {names[0]}" if names else ""


def _is_media(path: Path) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    known = (*PICTURES, *CONTAINERS, *OTHER_MEDIA)
    return path.suffix.lower() in known or kind.startswith(("image/", "video/"))


def _listed(folder: Path) -> list[Path]:
    """What a folder holds and does not hide."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _pictures(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """All media files, read or not."""
    paths, samples = _listed(folder), folder / "samples"
    for path in [samples] if GENEVAL.fullmatch(f"{folder.name}/samples") and samples in paths else paths:
        if path.is_dir() and path.resolve() not in above:
            yield from _pictures(path, (*above, path.resolve()))
        elif not path.is_dir() and _is_media(path):
            yield path


def _videos(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Media files, and folders that are videos; a folder that holds nothing is one too, as its row will say."""
    paths = _listed(folder)
    below = [p for f in paths if f.is_dir() and f.resolve() not in above for p in _videos(f, (*above, f.resolve()))]
    files = [path for path in paths if not path.is_dir() and _is_media(path)]
    moving = below or any(path.suffix.lower() in CONTAINERS or is_animation(path) for path in files)
    frames = any(path.suffix.lower() in PICTURES for path in files)
    if moving or (files and not frames):
        yield from (*below, *files)
    elif frames or len(above) > 1:
        yield folder
        yield from (path for path in files if path.suffix.lower() not in PICTURES)


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


# -------------------------------------------------------------------------------------------------------------- prompts


def match_prompts(names: Sequence[str], prompts_file: Path, what: str) -> list[Prompt | None]:
    """The prompt of each file or folder, named by its path below the folder of them all; None where there is none.

    A row that names a file (`Prompt.file`) has the one of this path, or of the end of one of the two. Else the folders that the
    name lies in tell the prompt, the nearest first, or the name itself: a row's id owns ``<id>.*``, ``<id>-<number>.*`` and
    ``<id>_<number>.*``, and its text likewise. In lists without ids a number counts the rows (`_by_number`). Unicode is compared
    composed. Raises InputError for two rows of one id or file with different texts, rows whose file is absent where others are
    there, numbers that can be read in two ways, and where no name has a prompt.
    """
    listed = load_prompts(str(prompts_file))
    for key in ("id", "file"):
        seen: dict[str, tuple[int, str]] = {}
        for row, prompt in enumerate(listed, start=1):
            name = getattr(prompt, key)
            first, text = seen.setdefault(name, (row, prompt.text))
            if name and text != prompt.text:
                raise InputError(
                    f"prompts file {prompts_file}: rows {first} and {row} both have the {key} {name!r}, of different texts"
                )
    by_file = _by_file(names, listed, prompts_file)
    rest = [p for p in listed if not p.file] if by_file else listed
    counted = len(rest) == len(listed) and not _has_ids(prompts_file, listed)
    owners = {_composed(p.text): p for p in reversed(rest)} | ({} if counted else {_composed(p.id): p for p in rest})

    def owner(part: str) -> Prompt | None:
        """Of a folder's or a file's name; a text may end in a dot, which makes the end of a folder's name look like a file's."""
        for stem in (part, Path(part).stem):
            head = re.fullmatch(r"(.+)[-_]\d+", stem, re.DOTALL)
            if prompt := owners.get(stem) or (head and owners.get(head[1])):
                return prompt
        return None

    def found(name: str) -> Prompt | None:
        *folders, last = _composed(name).split("/")
        return next(filter(None, map(owner, [*reversed(folders), last])), None)

    of = {name: by_file.get(name) or found(name) for name in names}
    if counted:
        left = [name for name, prompt in of.items() if prompt is None]
        of |= _by_number(left, listed, _styles(prompts_file, listed), prompts_file)
    if not any(of.values()):
        files = sum(p.file is not None for p in listed)
        raise InputError(
            f"none of {len(names)} {what} has a prompt in {prompts_file}, the first is {names[0]}; looked for in the columns "
            f"file, file_name, image, image_path ({files} of {len(listed)} rows have one), as an id like {listed[0].id!r}, as a "
            f"text like {listed[0].text[:40]!r}, and as the number of a row"
        )
    return [of[name] for name in names]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _has_ids(path: Path, listed: Sequence[Prompt]) -> bool:
    """Whether a list gives ids, which may look like the numbers that stand for absent ones."""
    if any(prompt.id != f"{number:06d}" for number, prompt in enumerate(listed, start=1)):
        return True
    if path.suffix == ".json":
        content = read_json(path.expanduser(), "prompts file")
        first = content[0] if isinstance(content, list) else {}
    else:
        line = read_text(path.expanduser(), "prompts file").lstrip().partition("\n")[0]
        readers = {".jsonl": json.loads, ".csv": lambda line: line.split(","), ".tsv": lambda line: line.split("\t")}
        first = readers.get(path.suffix, lambda line: ())(line)
    return "id" in [str(key).strip('"\r ').lower() for key in first] if not isinstance(first, str) else False


def _by_file(names: Sequence[str], listed: Sequence[Prompt], path: Path) -> dict[str, Prompt]:
    """Name → the prompt whose row names it: by its path, or by the end of the longer of the two paths."""
    rows: dict[str, list[tuple[list[str], Prompt]]] = {}
    for prompt in listed:
        if prompt.file:
            parts = [part for part in _composed(prompt.file).replace("\\", "/").split("/") if part not in ("", ".")]
            rows.setdefault(parts[-1], []).append((parts, prompt))
    out: dict[str, Prompt] = {}
    owned: set[int] = set()
    for name in names:
        parts = _composed(name).split("/")
        near = [(own, p) for own, p in rows.get(parts[-1], ()) if own[-len(parts) :] == parts[-len(own) :]]
        near = [(own, p) for own, p in near if own == parts] or near
        if len({p.text for _, p in near}) > 1:
            raise InputError(f"prompts file {path}: {name} may be {near[0][1].file} or {near[1][1].file}; write their paths")
        if near:
            out[name] = near[0][1]
            owned |= {id(p) for _, p in near}
    absent = sorted(p.file for p in listed if p.file and id(p) not in owned)
    if out and absent:
        raise InputError(f"{path}: {len(absent)} files of its rows are not there, the first is {absent[0]}")
    return out


def _styles(path: Path, listed: Sequence[Prompt]) -> dict[str, Sequence[Prompt]]:
    """Style → its prompts, of a list by styles (HPDv2)."""
    content = read_json(path.expanduser(), "prompts file") if path.suffix == ".json" else None
    if not isinstance(content, dict) or not all(isinstance(rows, list) for rows in content.values()):
        return {}
    left = iter(listed)
    return {style: [next(left) for _ in rows] for style, rows in content.items()}


def _by_number(
    names: Sequence[str], listed: Sequence[Prompt], styles: dict[str, Sequence[Prompt]], path: Path
) -> dict[str, Prompt]:
    """Name → the prompt of its number, in a list whose rows have no ids: of a folder of digits, or else of the file.

    Rows count from 0 if the number 0 is there, else from 1; in GenEval's folders from 0, and in ``<style>/`` those of the style
    too, unless the last row could not be meant so.
    """
    numbers: dict[str | None, dict[str, int]] = {}
    out: dict[str, Prompt] = {}
    for name in names:
        *folders, last = name.split("/")
        style = next((folder for folder in reversed(folders) if folder in styles), None)
        digits = next((folder for folder in reversed(folders) if re.fullmatch(r"\d{5,}", folder)), None)
        stem = NUMBERED.fullmatch(Path(last).stem)
        if row := GENEVAL.fullmatch("/".join(folders[-2:])):
            out |= {name: listed[int(row[1])]} if int(row[1]) < len(listed) else {}
        elif digits or stem:
            numbers.setdefault(style, {})[name] = int(digits or stem[1])
    zero = any(0 in number_of.values() for number_of in numbers.values())
    for style, number_of in numbers.items():
        rows = styles.get(style, listed)
        beyond = len(rows) in number_of.values()
        if zero and beyond:
            raise InputError(
                f"prompts file {path} has {len(rows)} rows without ids, and files are numbered from 0 to {len(rows)}: is 0 or 1 "
                "of the first row? Give the rows ids, or remove the file that is too much"
            )
        first = 0 if zero or (style is not None and not beyond) else 1
        out |= {name: rows[number - first] for name, number in number_of.items() if 0 <= number - first < len(rows)}
    return out
