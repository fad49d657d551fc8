"""What a folder of any system's media holds: pictures or videos, in nested folders too, each with its prompt."""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eval.media import ANIMATIONS, CONTAINERS, PICTURES, Video, is_animation, natural_key, read_picture, read_video
from otca.errors import InputError
from otca.prompts import Row, load_rows
from otca.types import Prompt

OTHER_MEDIA = (
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".jfif", ".psd", ".tga", ".exr", ".ppm", ".pgm", ".svg", ".dng"),
    *(".mkv", ".webm", ".flv", ".wmv", ".mpg", ".mpeg", ".m2ts", ".mts", ".ts", ".ogv", ".3gp", ".vob", ".y4m"),
)
"""Endings that `mimetypes` may not know for media."""
GENEVAL = re.compile(r"(\d{5})/samples")  # folder where GenEval keeps the pictures of a prompt, numbered from 0 on
NUMBERED = re.compile(r"(\d+)(?:_\d+)?")  # stem of the file of a row's number, and of one of several samples
composed = partial(unicodedata.normalize, "NFC")


@dataclass(frozen=True)
class Item:
    """A picture, a video or a folder of frames, with its prompt."""

    path: Path
    name: str  # its path below the folder of them all
    still: bool
    prompt: Prompt
    key: str  # of name, content, prompt and how it is turned
    upright: bool = True

    def read(self) -> Video:
        """Frames and rate. Raises InputError naming the file if it cannot be read."""
        return read_picture(self.path, self.upright) if self.still else read_video(self.path, upright=self.upright)


@dataclass(frozen=True)
class Found:
    """What a folder holds."""

    items: list[Item]  # in natural order
    orphans: list[str]  # names of those without a prompt
    unread: list[str]  # names of media that are not read


def find_items(place: Path, still: bool, prompts_file: Path, strict: bool = False, upright: bool = True) -> Found:
    """The pictures (``still``) or videos of a folder and of those below it, or of a file, with their prompts.

    Raises InputError if there are none, or none has a prompt, and with ``strict`` where any has none or is not read.
    """
    what, endings = ("images", PICTURES) if still else ("videos", (*CONTAINERS, *ANIMATIONS))
    place = place if place.name else place.resolve()
    if not place.exists():
        raise InputError(f"{what} {place} not found")
    try:
        paths = [place] if place.is_file() else _media_below(place, still, (place.resolve(),))
    except OSError as error:
        raise InputError(f"{what} folder {error.filename or place} cannot be read ({error.strerror})") from error
    folder = place.parent if place in paths else place  # a file, or one folder of frames
    seen = {path.relative_to(folder).as_posix(): path for path in sorted(paths, key=lambda path: natural_key(path.as_posix()))}
    names = [name for name, path in seen.items() if path.is_dir() or path.suffix.lower() in endings]
    unread = [name for name in seen if name not in names]
    foreign = [name for name in names if name.encode(errors="replace").decode() != name]
    if foreign:
        raise InputError(f"{what} folder {place}: the name {foreign[0]!r} is not UTF-8, as rows are; rename the file")
    if not names:
        read = ", ".join(endings) + ("" if still else ", or a sub-folder of frames for each")
        raise InputError(f"{what} folder {place} holds none that is read ({read}){f' but {unread[0]}' if unread else ''}")
    prompt_of = match_prompts(names, prompts_file, what)
    orphans = [name for name in names if name not in prompt_of]
    if strict and (orphans or unread):
        counts = ((orphans, f"without a prompt in {prompts_file}"), (unread, "not read"))
        said = "; ".join(", ".join([f"{len(names)} {how}", *names[:1]]) for names, how in counts)
        raise InputError(f"{what} {place}: {said}; convert, move or list them, or leave out --strict")
    matched = [(name, seen[name], prompt_of[name]) for name in names if name in prompt_of]
    items = [Item(path, name, still, prompt, _key(path, name, prompt, upright), upright) for name, path, prompt in matched]
    return Found(items, orphans, unread)


def _media_below(folder: Path, still: bool, above: tuple[Path, ...]) -> list[Path]:
    """Media files of a folder and of those below it, read or not; as a video counts a folder of still frames alone.

    Hidden files are passed over, and of GenEval's folders all but the samples (``grid.png`` shows them again). ``above``: the
    folders that lead here, which links may lead back to.
    """
    paths, samples = [path for path in folder.iterdir() if not path.name.startswith(".")], folder / "samples"
    if still and samples in paths and GENEVAL.fullmatch(f"{folder.name}/samples"):
        paths = [samples]
    inner = [path for path in paths if path.is_dir() and path.resolve() not in above]
    below = [found for path in inner for found in _media_below(path, still, (*above, path.resolve()))]
    files = [path for path in paths if not path.is_dir() and _is_media(path)]
    frames = [path for path in files if path.suffix.lower() in PICTURES]
    moving = below or any(path.suffix.lower() in CONTAINERS or is_animation(path) for path in files)
    if still or moving or (files and not frames):
        return below + files
    if frames or len(above) > 1:  # a folder that holds nothing is a video too, as its row will say
        return [folder, *(path for path in files if path not in frames)]
    return []


def _is_media(path: Path) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in (*PICTURES, *CONTAINERS, *OTHER_MEDIA) or kind.startswith(("image/", "video/"))


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


def match_prompts(names: Sequence[str], prompts_file: Path, what: str) -> dict[str, Prompt]:
    """The prompt of each file or folder that has one; names are paths below the folder of them all, compared in composed Unicode.

    A row that names a file (`Prompt.file`) has that one. Else the folders that the name lies in tell the prompt, the nearest
    first, or the name itself: a row's id owns ``<id>.*``, ``<id>-<number>.*`` and ``<id>_<number>.*``, and its text likewise.
    In lists without ids a number counts the rows (`_by_number`). What contradicts itself or can be read in two ways is refused.
    """
    rows, twins = load_rows(str(prompts_file)), {}
    for number, prompt in enumerate((row.prompt for row in rows), start=1):
        for key, value in (("id", prompt.id), ("file", prompt.file)):
            first, text = twins.setdefault((key, value), (number, prompt.text))
            if value and text != prompt.text:
                said = f"rows {first} and {number} both have the {key} {value!r}, of different texts"
                raise InputError(f"prompts file {prompts_file}: {said}")
    out = _by_file(names, [row.prompt for row in rows if row.prompt.file], prompts_file)
    owning = [row.prompt for row in rows if not (out and row.prompt.file)]
    counted = not any(row.has_id or row.prompt.file for row in rows)
    owners = {composed(p.text): p for p in reversed(owning)} | ({} if counted else {composed(p.id): p for p in owning})

    def owner(part: str) -> Prompt | None:
        """Of a folder's or a file's name; a text may end in a dot, which makes the end of a folder's name look like a file's."""
        for stem in (part, Path(part).stem):
            head = re.fullmatch(r"(.+)[-_]\d+", stem, re.DOTALL)
            own, sampled = owners.get(stem), head and owners.get(head[1])
            if own and sampled and own.text != sampled.text:
                said = f"{part} may be of {own.id!r}, or a sample of {sampled.id!r}; name the files in a column file"
                raise InputError(f"prompts file {prompts_file}: {said}")
            if own or sampled:
                return own or sampled
        return None

    twofold = {}
    for name in [name for name in names if name not in out]:
        *folders, last = composed(name).split("/")
        folder, own = next(filter(None, map(owner, reversed(folders))), None), owner(last)
        if folder or own:
            out[name] = folder or own
        if folder and own:
            twofold[name] = (folder.text, own.text)
    _check_readings(twofold, len({prompt.text for prompt in owning}), prompts_file)
    if counted:
        out |= _by_number([name for name in names if name not in out], rows, prompts_file)
    if not out:
        files, prompt = sum(row.prompt.file is not None for row in rows), rows[0].prompt
        raise InputError(
            f"none of {len(names)} {what} has a prompt in {prompts_file}, the first is {names[0]}; looked for in the columns "
            f"file, file_name, image, image_path ({files} of {len(rows)} rows have one), as an id like {prompt.id!r}, as a "
            f"text like {prompt.text[:40]!r}, and as the number of a row"
        )
    return out


def _check_readings(told: dict[str, tuple[object, object]], listed: int, path: Path) -> None:
    """Raise InputError where folder and file tell different rows, unless all rows are told by folders, and not by files."""
    by_folder, by_file = (len(set(rows)) for rows in zip(*told.values())) if told else (0, 0)
    for name, (folder, file) in told.items():
        if folder != file and not by_folder == listed > by_file:
            said = f"{name} may be of {folder!r}, by its folder, or of {file!r}, by its own name"
            raise InputError(f"prompts file {path}: {said}; name the files in a column file")


def _by_file(names: Sequence[str], prompts: Sequence[Prompt], path: Path) -> dict[str, Prompt]:
    """Name → the prompt whose row names it: by its path, or by the end of the longer of the two paths."""
    listed, out, owned = defaultdict(list), {}, set()
    for prompt in prompts:
        parts = [part for part in composed(prompt.file).replace("\\", "/").split("/") if part not in ("", ".")]
        listed["".join(parts[-1:])].append((parts, prompt))
    for name in names:
        parts = composed(name).split("/")
        near = [(own, p) for own, p in listed[parts[-1]] if own[-len(parts) :] == parts[-len(own) :]]
        near = [(own, p) for own, p in near if own == parts] or near
        if len({p.text for _, p in near}) > 1:
            raise InputError(f"prompts file {path}: {name} may be {near[0][1].file} or {near[1][1].file}; write their paths")
        if near:
            out[name] = near[0][1]
            owned |= {p.file for _, p in near}
    absent = sorted({prompt.file for prompt in prompts} - owned)
    if out and absent:
        raise InputError(f"{path}: {len(absent)} files of its rows are not there, the first is {absent[0]}")
    return out


def _by_number(names: Sequence[str], rows: Sequence[Row], path: Path) -> dict[str, Prompt]:
    """Name → the prompt of its number, in a list whose rows have no ids: of a folder of digits, or else of the file.

    Rows count from 0 if the number 0 is there, else from 1; in GenEval's folders from 0, and in ``<style>/`` those of the style
    too, unless the last row could not be meant so.
    """
    listed, out, styles, numbers = [row.prompt for row in rows], {}, defaultdict(list), defaultdict(dict)
    twofold = {}
    for row in rows:
        if row.style:
            styles[row.style].append(row.prompt)
    for name in names:
        *folders, last = name.split("/")
        style = next((folder for folder in reversed(folders) if folder in styles), None)
        digits = next((folder for folder in reversed(folders) if re.fullmatch(r"\d{5,}", folder)), None)
        stem = NUMBERED.fullmatch(Path(last).stem)
        if row := GENEVAL.fullmatch("/".join(folders[-2:])):
            out |= {name: listed[int(row[1])]} if int(row[1]) < len(listed) else {}
        elif digits or stem:
            numbers[style][name] = int(digits or stem[1])
            if digits and stem and len(stem[1]) >= 5:  # other generators keep a thousand pictures a folder
                twofold[name] = (int(digits), int(stem[1]))
    _check_readings(twofold, len(listed), path)
    zero = any(0 in number_of.values() for number_of in numbers.values())
    for style, number_of in numbers.items():
        own = styles.get(style, listed)
        beyond = len(own) in number_of.values()
        if zero and beyond:
            raise InputError(
                f"prompts file {path} has {len(own)} rows without ids, and files are numbered from 0 to {len(own)}: is 0 or 1 "
                "of the first row? Give the rows ids, or remove the file that is too much"
            )
        first = 0 if zero or (style is not None and not beyond) else 1
        out |= {name: own[number - first] for name, number in number_of.items() if 0 <= number - first < len(own)}
    return out
