"""JSON and YAML that others wrote: what is malformed, bottomless or explosive is refused in one line, before it is built."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from otca.errors import InputError, one_line

MAX_DEPTH = 16
"""Levels of a YAML text; settings have three."""
MAX_YAML = 200_000
"""Characters of a YAML text; all settings of a run fill 4,000."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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


def check_yaml(text: str) -> None:
    """Raise YAMLError for more than plain settings: tags, aliases, keys that come twice, many levels, many characters.

    Aliases make a few lines into terabytes, and libyaml builds a node within a node on the stack of C; so events, which are flat,
    come first.
    """
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"{len(text):,} characters of settings; the limit is {MAX_YAML:,}")
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"line {line} is nested more than {MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"line {line} has the alias *{event.anchor}; write its value out")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"line {line} has the tag {event.tag!r}; settings are plain values")
    _refuse_twins(yaml.compose(text, Loader=_LOADER))


def _refuse_twins(node: yaml.Node | None) -> None:
    """Raise YAMLError for a mapping with a key that comes twice, of which readers would take the last."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value.__hash__ and key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} sets {key.value!r} a second time")
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
            _refuse_twins(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twins(value)
