"""Which prompt a media file is of: by the columns of a list that name files, by id, by text, or by number."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from otca.errors import InputError
from otca.prompts import load_prompts
from otca.types import Prompt
from otca.untrusted import read_json

GENEVAL = re.compile(r"(\d{5})/samples")
"""Folder where GenEval keeps the pictures of a prompt, numbered from 0 on."""
_NUMBERED = re.compile(r"(\d+)(?:_\d+)?")
"""Stem of the file of a row's number, and of one of several samples."""


def match_prompts(names: Sequence[str], prompts_file: Path, what: str) -> list[Prompt | None]:
    """The prompt of each file or folder, named by its path below the folder of them all; None where there is none.

    A row that names a file (`Prompt.file`) has the one of this path, or of the end of one of the two. Else the folders that the
    name lies in tell the prompt, the nearest first, or the name itself: a row's ``id`` owns ``<id>.*`` and ``<id>_<number>.*``,
    its text ``<text>.*``, ``<text>-<number>.*`` and ``<text>_<number>.*``. In lists without ids a number counts the rows, or in
    ``<style>/`` those of a style, from 0 if the number 0 is there, else from 1; GenEval's folders count from 0. Unicode is
    compared composed. Raises InputError for two rows of one id or file with different texts, rows whose file is absent where
    others are there, numbers that can be read in two ways, and where no name has a prompt; ``what`` names the media.
    """
    listed = load_prompts(str(prompts_file))
    _check_twins(listed, prompts_file)
    by_file = _by_file(names, listed, prompts_file)
    rest = [p for p in listed if not p.file] if by_file else listed
    counted = all(p.id == f"{number:06d}" for number, p in enumerate(listed, start=1)) and len(rest) == len(listed)
    by_id = {} if counted else {_composed(p.id): p for p in rest}
    by_text = {_composed(p.text): p for p in reversed(rest)}

    def found(name: str) -> Prompt | None:
        *folders, last = _composed(name).split("/")
        for folder in reversed(folders):
            if prompt := by_id.get(folder) or _by_text(folder, by_text):
                return prompt
        return by_id.get(last) or _by_stem(Path(last).stem, by_id) or _by_text(last, by_text)

    of = {name: by_file.get(name) or found(name) for name in names}
    if counted:
        left = [name for name, prompt in of.items() if prompt is None]
        of |= _by_number(left, listed, _styles(prompts_file, listed), prompts_file)
    prompts = [of[name] for name in names]
    if not any(prompts):
        named = sum(p.file is not None for p in listed)
        raise InputError(
            f"none of {len(names)} {what} has a prompt in {prompts_file}, the first is {names[0]}; looked for in the columns "
            f"file, file_name, image, image_path ({named} of {len(listed)} rows have one), as an id like {listed[0].id!r}, as a "
            f"text like {listed[0].text[:40]!r}, and as the number of a row"
        )
    return prompts


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _check_twins(listed: Sequence[Prompt], path: Path) -> None:
    for key in ("id", "file"):
        seen: dict[str, tuple[int, str]] = {}
        for row, prompt in enumerate(listed, start=1):
            name = getattr(prompt, key)
            first, text = seen.setdefault(name, (row, prompt.text))
            if name and text != prompt.text:
                raise InputError(f"prompts file {path}: rows {first} and {row} both have the {key} {name!r}, of different texts")


def _by_file(names: Sequence[str], listed: Sequence[Prompt], path: Path) -> dict[str, Prompt]:
    """Name → the prompt whose row names it: by its path, or by the end of the longer of the two paths."""
    rows: dict[str, list[tuple[list[str], Prompt]]] = {}
    for prompt in listed:
        if prompt.file:
            parts = [part for part in _composed(prompt.file).replace("\\", "/").split("/") if part not in ("", ".")]
            rows.setdefault(parts[-1], []).append((parts, prompt))
    out: dict[str, Prompt] = {}
    owned: dict[int, str] = {}
    for name in names:
        parts = _composed(name).split("/")
        near = [(own, p) for own, p in rows.get(parts[-1], ()) if own[-len(parts) :] == parts[-len(own) :]]
        near = [(own, p) for own, p in near if own == parts] or near
        if len({p.text for _, p in near}) > 1:
            raise InputError(f"prompts file {path}: {name} may be {near[0][1].file} or {near[1][1].file}; write their paths")
        if near:
            out[name] = near[0][1]
            owned |= {id(p): name for _, p in near}
    absent = sorted(p.file for p in listed if p.file and id(p) not in owned)
    if out and absent:
        raise InputError(f"{path}: {len(absent)} files of its rows are not there, the first is {absent[0]}")
    return out


def _styles(path: Path, listed: Sequence[Prompt]) -> dict[str, Sequence[Prompt]]:
    """Style → its prompts, of a list by styles (HPDv2)."""
    content = read_json(path, "prompts file") if path.suffix == ".json" else None
    if not isinstance(content, dict) or not all(isinstance(rows, list) for rows in content.values()):
        return {}
    left = iter(listed)
    return {style: [next(left) for _ in rows] for style, rows in content.items()}


def _by_number(
    names: Sequence[str], listed: Sequence[Prompt], styles: dict[str, Sequence[Prompt]], path: Path
) -> dict[str, Prompt]:
    """Name → the prompt of its number, in a list whose rows have no ids."""
    numbers: dict[str | None, dict[str, int]] = {}
    out: dict[str, Prompt] = {}
    for name in names:
        *folders, last = name.split("/")
        style = next((folder for folder in reversed(folders) if folder in styles), None)
        digits = next((folder for folder in reversed(folders) if re.fullmatch(r"\d{5,}", folder)), None)
        stem = _NUMBERED.fullmatch(Path(last).stem)
        if row := GENEVAL.fullmatch("/".join(folders[-2:])):
            out |= {name: listed[int(row[1])]} if int(row[1]) < len(listed) else {}
        elif digits or stem:
            numbers.setdefault(style, {})[name] = int(digits or stem[1])
    first = 0 if any(0 in number_of.values() for number_of in numbers.values()) else 1
    for style, number_of in numbers.items():
        rows = styles.get(style, listed)
        if first == 0 and len(rows) in number_of.values():
            raise InputError(
                f"prompts file {path} has {len(rows)} rows without ids, and files are numbered from 0 to {len(rows)}: is 0 or 1 "
                "of the first row? Give the rows ids, or remove the file that is too much"
            )
        out |= {name: rows[number - first] for name, number in number_of.items() if number - first < len(rows)}
    return out


def _by_stem(stem: str, by_id: dict[str, Prompt]) -> Prompt | None:
    head, _, tail = stem.rpartition("_")
    return by_id.get(stem) or (by_id.get(head) if tail.isdigit() else None)


def _by_text(name: str, by_text: dict[str, Prompt]) -> Prompt | None:
    """The text may end in a dot, which makes the end of a folder's name look like a file's."""
    for stem in (name, Path(name).stem):
        if stem in by_text:
            return by_text[stem]
        head = re.fullmatch(r"(.+)[-_]\d+", stem, re.DOTALL)
        if head and head[1] in by_text:
            return by_text[head[1]]
    return None
