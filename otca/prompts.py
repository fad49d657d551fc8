"""Where prompts come from: the embedded grammar, or a JSONL or CSV file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from otca.errors import InputError
from otca.types import Prompt

EMBEDDED_TRAIN = 1200
"""Prompts in the embedded training list."""


def load_prompts(source: str, count: int | None = None) -> list[Prompt]:
    """Read ``embedded:MEDIUM/SPLIT`` or a file; ``count`` takes the first so many. Raises InputError with the line number."""
    if source.startswith("embedded:"):
        return _embedded(source, count or EMBEDDED_TRAIN)
    path = Path(source)
    if not path.is_file():
        raise InputError(f"prompts file {path} not found; give a .jsonl or .csv file, or embedded:MEDIUM/SPLIT")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            if path.suffix == ".jsonl":
                rows = _read_jsonl(path, file)
            elif path.suffix == ".csv":
                rows = _read_csv(path, file)
            else:
                raise InputError(f"prompts file {path}: unknown ending {path.suffix!r}; use .jsonl or .csv")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts file {path}: not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    if not rows:
        raise InputError(f"prompts file {path} is empty; it needs at least one prompt")
    return rows[:count]


def _embedded(source: str, count: int) -> list[Prompt]:
    from otca.embedded import scenes, video_scenes
    from otca.embedded.grammar import SPLITS

    grammars = {"image": scenes, "video": video_scenes}
    medium, _, split = source.removeprefix("embedded:").partition("/")
    if medium not in grammars or split not in SPLITS:
        known = ", ".join(f"embedded:{medium}/{split}" for medium in grammars for split in SPLITS)
        raise InputError(f"prompts {source!r}: unknown list; choose from {known}")
    return grammars[medium].prompts(split, count)


def _read_jsonl(path, file) -> list[Prompt]:
    out = []
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"prompts file {path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise InputError(f"prompts file {path}, line {number}: expected an object, found {type(row).__name__}")
        out.append(_prompt(path, number, row))
    return out


def _read_csv(path, file) -> list[Prompt]:
    reader = csv.DictReader(file)
    try:
        return [_prompt(path, reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"prompts file {path}, line {reader.line_num}: malformed CSV ({error})") from error


def _prompt(path, number: int, row: dict) -> Prompt:
    text = row.get("prompt", row.get("text"))
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"prompts file {path}, line {number}: no text under the key 'prompt' (or 'text')")
    spec = row.get("spec")
    if isinstance(spec, str):
        try:
            spec = json.loads(spec) if spec else None
        except json.JSONDecodeError as error:
            raise InputError(f"prompts file {path}, line {number}: 'spec' is not JSON ({error.msg})") from error
    return Prompt(id=str(row.get("id") or f"{number:06d}"), text=text, spec=spec, file=row.get("file") or None)


def prompt_order(length: int, seed: int, first: int, count: int) -> list[int]:
    """Indices of slots first … first+count−1 of an endless list made of seeded shuffles of 0 … length−1."""
    out = []
    for slot in range(first, first + count):
        epoch, place = divmod(slot, length)
        out.append(int(np.random.default_rng([seed, epoch, 3]).permutation(length)[place]))
    return out
