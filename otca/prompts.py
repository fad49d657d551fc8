"""Where prompts come from: the embedded grammar, a file in any of the formats that lists are published in, a published list."""

from __future__ import annotations

import codecs
import csv
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import yaml

from otca.config import EvalConfig
from otca.errors import InputError, one_line, printable
from otca.files import parse_json, write_atomic
from otca.types import Prompt

EMBEDDED_TRAIN = 1200
"""Prompts in the embedded training list."""

TEXT_KEYS = ("prompt", "text", "prompts", "caption", "prompt_en")
"""Names of the column that holds the text, the first one found."""

FILE_KEYS = ("file", "file_name", "image", "image_path", "video", "video_path")
"""Names of the column that names a media file, the first one found; folders of datasets and other repositories have the later."""

csv.field_size_limit(10_000_000)  # Python's own of 131,072 characters ends some lists of captions

MAX_NAME = 255
"""Characters of an id, which names rows and files, and of the name of a file."""


@dataclass(frozen=True)
class Row:
    """A row of a list: its prompt, all its cells, whether the file gives its id, and, in a list by styles, its style."""

    prompt: Prompt
    cells: dict[str, Any]
    has_id: bool
    style: str


def load_prompts(source: str, count: int | None = None) -> list[Prompt]:
    """Read ``embedded:MODALITY/SPLIT`` or a file (see `stream_rows`); ``count`` takes the first so many."""
    if source.startswith("embedded:"):
        return _embedded(source, count or EMBEDDED_TRAIN)
    return [row.prompt for row in load_rows(source, count)]


def load_rows(source: str, count: int | None = None) -> list[Row]:
    """The rows of a file, at least one."""
    rows = list(itertools.islice(stream_rows(source), count))
    if not rows:
        raise InputError(f"prompts file {source} is empty; it needs at least one prompt")
    return rows


def evaluation_prompts(config: EvalConfig) -> list[Prompt]:
    """The prompts that a model is judged on: the first of the list, or as many evenly spread over it (``config.choice``)."""
    if config.choice == "first":
        return load_prompts(config.source, config.prompts)
    listed = load_prompts(config.source)
    count = min(config.prompts, len(listed))
    return [listed[(2 * i + 1) * len(listed) // (2 * count)] for i in range(count)]


def stream_rows(source: str) -> Iterator[Row]:
    """Rows of a file, one by one as it is read (.json whole).

    .jsonl: objects; .csv and .tsv: a header line, which tells the separator; .txt: a prompt a line (DanceGRPO); .json: a list of
    texts or of objects (VBench), such lists by style (HPDv2), or texts by file (VBench's own input). The text lies
    under one of `TEXT_KEYS`, whatever its case; any text goes, however long, but ids and names of files are short and printable,
    and specs are objects of plain JSON. Raises InputError naming the file and the line (in .json files, the entry).
    """
    path = Path(source)
    if not os.path.isfile(path):
        said = f"prompts file {path} not found; give a {', '.join(READERS)} file, or embedded:MODALITY/SPLIT"
        raise InputError(f"{said}, or fetch a published list: `python -m otca prompts --list {path.stem}`")
    ending = path.suffix.lower()
    if ending not in READERS:
        raise InputError(f"prompts file {path}: unknown ending {path.suffix!r}; use {', '.join(READERS)}")
    try:
        with open(path, "rb") as file:
            head = file.read(4)
        wide = head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Windows marks its 16-bit text
        if (b"\0" in head and not wide) or head[2:] == b"\0\0":
            raise InputError(f"prompts file {path}: not UTF-8, but characters of 16 or 32 bits without a mark; convert the file")
        encoding = "utf-16" if wide else "utf-8-sig"
        with open(path, encoding=encoding, errors="surrogateescape", newline="") as file:
            for number, (line, style, content) in enumerate(READERS[ending](path, file), start=1):
                yield _row(f"prompts file {path}, line {line}", number, style, content)
    except (OSError, UnicodeError) as error:
        raise InputError(f"prompts file {path} cannot be read ({getattr(error, 'strerror', None) or one_line(error)})") from error


def _embedded(source: str, count: int) -> list[Prompt]:
    from otca.tasks import scenes, video_scenes
    from otca.tasks.grammar import SPLITS

    grammars = {"image": scenes, "video": video_scenes}
    modality, _, split = source.removeprefix("embedded:").partition("/")
    if modality not in grammars or split not in SPLITS:
        known = ", ".join(f"embedded:{modality}/{split}" for modality in grammars for split in SPLITS)
        raise InputError(f"prompts {source!r}: unknown list; choose from {known}")
    return grammars[modality].prompts(split, count)


Contents = Iterator[tuple[int, str, Any]]
"""Of a file: the number of the line, the style that it stands under, and the object (or only the text) that it holds."""


def _read_table(path: Path, file: TextIO) -> Contents:
    first, own = file.readline(), "\t" if path.suffix.lower() == ".tsv" else ","
    file.seek(0)
    separator = own if own in first else next((mark for mark in ",;\t" if mark in first), own)  # ";" where the comma is decimal
    reader = csv.DictReader(file, delimiter=separator, strict=True)
    ended = 1  # the line on which the last row ended
    try:
        header = [name.strip().lower() for name in reader.fieldnames or ()]
        if twice := [name for name in ("id", "spec", *TEXT_KEYS, *FILE_KEYS) if header.count(name) > 1]:
            raise InputError(f"prompts file {path}: {header.count(twice[0])} columns are called {twice[0]!r}; keep one")
        for cells in reader:
            if None in cells:
                wide = len(reader.fieldnames) + len(cells[None])
                raise csv.Error(f"{wide} cells under a header of {len(reader.fieldnames)}; quote texts that hold the separator")
            if any(cell and '\\"' in cell for cell in cells.values()):
                raise csv.Error('a quote after a backslash; double it instead: ""')
            yield reader.line_num, "", cells
            ended = reader.line_num
    except csv.Error as error:
        raise InputError(f"prompts file {path}, line {ended + 1}: malformed CSV ({error})") from error


def _read_lines(path: Path, file: TextIO) -> Contents:
    for line, text in enumerate(file, start=1):
        if text.strip():
            content = parse_json(text, f"prompts file {path}, line {line}") if path.suffix.lower() == ".jsonl" else text.strip()
            yield line, "", content


def _read_json(path: Path, file: TextIO) -> Contents:
    content = parse_json(file.read(), f"prompts file {path}")
    if isinstance(content, dict) and content and all(isinstance(text, str) for text in content.values()):  # VBench's own lists
        content = [{"file": name, "prompt": text} for name, text in content.items()]
    lists = content if isinstance(content, dict) else {"": content}
    for key, rows in lists.items():
        if not isinstance(rows, list):
            raise InputError(f"prompts file {path}: expected a list of prompts{f' under {key[:60]!r}' if key else ''}")
    contents = ((style, content) for style, rows in lists.items() for content in rows)
    yield from ((number, style, content) for number, (style, content) in enumerate(contents, start=1))


READERS = {".jsonl": _read_lines, ".csv": _read_table, ".tsv": _read_table, ".txt": _read_lines, ".json": _read_json}


def _row(where: str, number: int, style: str, content: Any) -> Row:
    """One row, whose id is its number among the rows, from 1, unless it has its own."""
    cells = content if isinstance(content, dict) else {"prompt": content}
    named = {key.strip().lower(): value for key, value in cells.items() if isinstance(key, str)}
    text = next((named[key] for key in TEXT_KEYS if key in named), None)
    file = next((named[key] for key in FILE_KEYS if key == "file" or isinstance(named.get(key), str) if named.get(key)), None)
    try:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"no text under the key {', '.join(map(repr, TEXT_KEYS))}")
        text.encode()
        own = _name("id", named.get("id"))
        prompt = Prompt(own or f"{number:06d}", text, _spec(named.get("spec")), _name("file", file))
        return Row(prompt, cells, own is not None, style)
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: not UTF-8 ({text[error.start]!r} is no character); convert the file") from error
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _name(key: str, value: Any) -> str | None:
    """An id or the name of a file, None where there is none."""
    if not isinstance(value, str | int | None):
        raise InputError(f"{key!r} is of type {type(value).__name__}; give a string or a whole number")
    name = "" if value is None else str(value)
    if len(name) > MAX_NAME or not name.isprintable():
        raise InputError(f"{key!r} is {name[:60]!r}, {len(name)} characters; at most {MAX_NAME} are allowed, all printable")
    return name or None


def _spec(value: Any) -> dict[str, Any] | None:
    """A spec as an object, which files that hold only texts give as JSON."""
    if not value:
        return None
    spec = parse_json(value, "'spec'") if isinstance(value, str) else value
    if not isinstance(spec, dict):
        raise InputError(f"'spec' is of type {type(spec).__name__}; it must be an object")
    try:
        json.dumps(spec, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise InputError(f"'spec' holds what no JSON may ({printable(error)})") from error
    return spec or None


def prompt_order(length: int, seed: int, first: int, count: int) -> list[int]:
    """Indices of slots first … first+count−1 of an endless list made of seeded shuffles of 0 … length−1."""
    return [int(_shuffle(length, seed, slot // length)[slot % length]) for slot in range(first, first + count)]


@functools.lru_cache(maxsize=4)
def _shuffle(length: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, 3]).permutation(length)


# ------------------------------------------------------------------------------------------------------ published lists


@dataclass(frozen=True)
class PublishedList:
    """A list at a pinned commit. ``checksum`` is ``sha256:`` or, where only git's own is known, ``git:`` and the blob's id."""

    url: str
    file: str
    checksum: str
    what: str


LISTS = {
    name: PublishedList(**entry)
    for name, entry in yaml.safe_load(Path(__file__).with_name("prompt_lists.yaml").read_text(encoding="utf-8")).items()
}


def fetch_list(name: str, folder: Path) -> Path:
    """Download a list, check it, write it and read it once; a file that is already there is checked and kept."""
    if name not in LISTS:
        raise InputError(f"unknown prompt list {name!r}; choose from {', '.join(LISTS)}")
    listed = LISTS[name]
    path = folder / listed.file
    if path.is_file():
        _check(listed, path.read_bytes(), f"{path} (delete it to fetch it anew)")
        return path
    import httpx

    try:
        content = httpx.get(listed.url, timeout=60, follow_redirects=True).raise_for_status().content
    except httpx.HTTPError as error:
        said = f"{listed.url} cannot be fetched ({one_line(error)}); download it elsewhere and put it at {path}"
        raise InputError(said) from error
    _check(listed, content, listed.url)
    write_atomic(path, content)
    load_prompts(str(path))
    return path


def _check(listed: PublishedList, content: bytes, where: str) -> None:
    kind, _, expected = listed.checksum.partition(":")
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    found = (git if kind == "git" else hashlib.sha256(content)).hexdigest()
    if found != expected:
        raise InputError(f"{where} is not the published list: expected {kind} {expected[:16]}…, found {found[:16]}…")
