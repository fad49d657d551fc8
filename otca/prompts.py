"""Where prompts come from: the embedded grammar, or a file in any of the formats that lists are published in."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from otca.errors import InputError
from otca.types import Prompt

EMBEDDED_TRAIN = 1200
"""Prompts in the embedded training list."""

TEXT_KEYS = ("prompt", "text", "prompts", "caption", "prompt_en")
"""Names of the column that holds the text, the first one found."""


def load_prompts(source: str, count: int | None = None) -> list[Prompt]:
    """Read ``embedded:MEDIUM/SPLIT`` or a file (see `stream_prompts`); ``count`` takes the first so many."""
    if source.startswith("embedded:"):
        return _embedded(source, count or EMBEDDED_TRAIN)
    rows = list(itertools.islice(stream_prompts(source), count))
    if not rows:
        raise InputError(f"prompts file {source} is empty; it needs at least one prompt")
    return rows


def stream_prompts(source: str) -> Iterator[Prompt]:
    """Prompts of a file, one by one as it is read (.json whole).

    .jsonl: objects; .csv and .tsv: a header line (PartiPrompts, DrawBench); .txt: a prompt a line (DanceGRPO); .json: a list of
    texts or of objects (VBench), or such lists by style (HPDv2). The text lies under one of `TEXT_KEYS`, whatever its case.
    Raises InputError naming the file and the line.
    """
    path = Path(source)
    if not path.is_file():
        raise InputError(
            f"prompts file {path} not found; give a {', '.join(READERS)} file, or embedded:MEDIUM/SPLIT, or fetch a published "
            f"list: `python -m otca prompts --list {path.stem}`"
        )
    if path.suffix not in READERS:
        raise InputError(f"prompts file {path}: unknown ending {path.suffix!r}; use {', '.join(READERS)}")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            yield from READERS[path.suffix](path, file)
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file {path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error


def _embedded(source: str, count: int) -> list[Prompt]:
    from otca.embedded import scenes, video_scenes
    from otca.embedded.grammar import SPLITS

    grammars = {"image": scenes, "video": video_scenes}
    medium, _, split = source.removeprefix("embedded:").partition("/")
    if medium not in grammars or split not in SPLITS:
        known = ", ".join(f"embedded:{medium}/{split}" for medium in grammars for split in SPLITS)
        raise InputError(f"prompts {source!r}: unknown list; choose from {known}")
    return grammars[medium].prompts(split, count)


def _read_jsonl(path: Path, file) -> Iterator[Prompt]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"prompts file {path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise InputError(f"prompts file {path}, line {number}: expected an object, found {type(row).__name__}")
        yield _prompt(path, number, row)


def _read_table(path: Path, file) -> Iterator[Prompt]:
    reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        for row in reader:
            yield _prompt(path, reader.line_num, row)
    except csv.Error as error:
        raise InputError(f"prompts file {path}, line {reader.line_num}: malformed CSV ({error})") from error


def _read_lines(path: Path, file) -> Iterator[Prompt]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield _prompt(path, number, {"prompt": line.strip()})


def _read_json(path: Path, file) -> Iterator[Prompt]:
    try:
        content = json.load(file)
    except json.JSONDecodeError as error:
        raise InputError(f"prompts file {path}, line {error.lineno}: not JSON ({error.msg})") from error
    lists = content if isinstance(content, dict) else {"": content}
    number = 0
    for key, rows in lists.items():
        if not isinstance(rows, list):
            raise InputError(f"prompts file {path}: expected a list of prompts{f' under {key!r}' if key else ''}")
        for row in rows:
            number += 1
            yield _prompt(path, number, row if isinstance(row, dict) else {"prompt": row})


READERS = {".jsonl": _read_jsonl, ".csv": _read_table, ".tsv": _read_table, ".txt": _read_lines, ".json": _read_json}


def _prompt(path: Path, number: int, row: dict) -> Prompt:
    named = {key.lower(): value for key, value in row.items() if isinstance(key, str)}
    text = next((named[key] for key in TEXT_KEYS if key in named), None)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"prompts file {path}, line {number}: no text under the key {', '.join(map(repr, TEXT_KEYS))}")
    spec = named.get("spec")
    if isinstance(spec, str):
        try:
            spec = json.loads(spec) if spec else None
        except json.JSONDecodeError as error:
            raise InputError(f"prompts file {path}, line {number}: 'spec' is not JSON ({error.msg})") from error
    return Prompt(id=str(named.get("id") or f"{number:06d}"), text=text, spec=spec, file=named.get("file") or None)


def prompt_order(length: int, seed: int, first: int, count: int) -> list[int]:
    """Indices of slots first … first+count−1 of an endless list made of seeded shuffles of 0 … length−1."""
    out = []
    for slot in range(first, first + count):
        epoch, place = divmod(slot, length)
        out.append(int(np.random.default_rng([seed, epoch, 3]).permutation(length)[place]))
    return out
