"""JSON and text that others wrote: what is malformed is refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from otca.errors import InputError, one_line


def parse_json(text: str, what: str) -> Any:
    """The content of a JSON text; ``what`` names it in messages. Raises InputError for what is none, or nested without end."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # of whole numbers of thousands of digits, too
        raise InputError(f"{what}: not JSON ({one_line(error)})") from error


def read_text(path: str | Path, what: str) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises InputError naming ``what`` and the path."""
    if not os.path.isfile(path):
        raise InputError(f"{what} {path} not found, or no file")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path} cannot be read ({one_line(error)})") from error


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file. Raises InputError naming ``what`` and the path."""
    return parse_json(read_text(path, f"{what}:"), f"{what}: {path} cannot be read")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The same for a file that must hold an object."""
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise InputError(f"{what}: {path} holds a {type(found).__name__} and no object; write or fetch it again")
    return found
