"""Parsers of the commands and of YAML settings: options are fields of the config dataclasses; a wrong one is said in one line."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, get_loader, set_loader, set_parsing_settings

from otca.bounds import check_plain
from otca.errors import InputError, nearest, one_line, printable
from otca.files import read_text

set_parsing_settings(docstring_parse_attribute_docstrings=True)
_load_yaml = get_loader("yaml")
MAX_YAML, MAX_DEPTH = 200_000, 16
"""Characters and levels of a YAML text; all settings of a run fill 4,000, in three levels."""


class _Plain(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # libyaml alone reads a list of addresses with queries
    """YAML without a key twice, of which the last would count."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} sets {key.value!r} a second time")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load_checked(text: str) -> Any:
    """What jsonargparse makes of a YAML text, a file's or a value's, without aliases. Raises YAMLError."""
    if len(text) > MAX_YAML:
        raise yaml.YAMLError(f"{len(text):,} characters of settings; the limit is {MAX_YAML:,}")
    try:
        depth = 0  # nests as deep as C's stack end the process, and aliases make a few lines into terabytes
        for event in yaml.parse(text, Loader=_Plain):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or isinstance(event, yaml.AliasEvent):
                said = f"has an alias, whose value is to be written out, or is nested more than {MAX_DEPTH} levels deep"
                raise yaml.YAMLError(f"line {event.start_mark.line + 1} {said}")
        yaml.load(text, Loader=_Plain)
        return _load_yaml(text)
    except (ValueError, TypeError) as error:  # of scalars that look like numbers, such as 0x_
        raise yaml.YAMLError(f"a value cannot be read ({one_line(error)})") from error


set_loader("yaml", _load_checked, exceptions=(yaml.YAMLError,))


class SettingsFile(ActionConfigFile):
    """``--config FILE``: settings of the parser by name, in groups or dotted, and nothing else."""

    def __call__(self, parser, cfg, values, option_string=None):
        values = os.path.expanduser(values)
        check_settings(read_settings(values), parser, values)
        super().__call__(parser, cfg, values, option_string)


def read_settings(path: str | Path) -> dict:
    """The mapping that a YAML file holds. Raises InputError naming the file for one that holds none."""
    try:
        content = _load_checked(read_text(path, "settings"))
    except yaml.YAMLError as error:
        said = printable(error).replace(' in "<unicode string>"', "")
        raise InputError(f"settings {path}: {said}") from error
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"settings {path} hold {found}; expected lines such as 'seed: 1'")
    return content


def flat_settings(settings: Mapping, prefix: str = "") -> dict[str, Any]:
    """Values of nested settings under dotted keys."""
    out = {}
    for key, value in settings.items():
        inner = flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        if twice := sorted(out.keys() & inner.keys()):
            raise InputError(f"{twice[0]!r} is set twice, dotted and in its group; leave out one of the two")
        out |= inner
    return out


def check_settings(content: dict, parser: ArgumentParser, path: str | Path) -> None:
    """Raise InputError, naming the file, for what is no setting of the parser or cannot be one's value.

    jsonargparse would also take classes, whose modules it imports, and in the place of a group the path of a further file.
    """
    own = {action.dest for action in parser._actions} - {"help", "config", "print_config"}
    groups = {dest.rpartition(".")[0] for dest in own if "." in dest}
    try:
        flat = flat_settings(content)
    except InputError as error:
        raise InputError(f"settings {path}: {error}") from error
    for key, value in flat.items():
        if key not in own - groups:
            what = "must hold settings by name" if key in groups else f"is unknown{_nearest(key, own)}"
            raise InputError(f"settings {path}: {key[:60]!r} {what}")
        check_plain(f"settings {path}: {key}", value)


def _nearest(name: str, known: set[str]) -> str:
    """A hint at the end of a message about an unknown name; the last part of a dotted name will do."""
    return nearest(name, sorted(known | {k.rpartition(".")[2] for k in known}), cutoff=0.5)


def make_parser(command: str, description: str) -> ArgumentParser:
    """The parser of ``python -m otca COMMAND``, which raises instead of ending the program."""
    return ArgumentParser(prog=f"python -m otca {command}", description=description, exit_on_error=False)


def parse(parser: ArgumentParser, argv: list[str]):
    """Parse and build the dataclasses, or raise InputError in one line with the nearest valid name; ``~`` is the home folder."""
    try:
        given = parser.parse_args(argv)
        for name, value in list(given.items()):
            if isinstance(value, (str, Path)) and str(value).startswith("~"):
                given[name] = type(value)(os.path.expanduser(value))
        return parser.instantiate(given)
    except argparse.ArgumentError as error:
        raise InputError(printable(_with_nearest(str(error), parser))) from error


def _with_nearest(message: str, parser: ArgumentParser) -> str:
    """Add the nearest valid option or value to a message about an unknown one; call missing ones what the help calls them."""
    if choice := re.search(r"a typing.Literal\[(.*?)\].*Got value: (.*)", message, re.DOTALL):
        allowed, value = re.findall(r"'(.*?)'", choice[1]), choice[2].strip()
        unquoted = value == "False" and "no" in allowed
        hint = "; YAML reads no as False: write 'no', in quotes" if unquoted else nearest(value, allowed)
        return message.replace(f"a typing.Literal[{choice[1]}]", f"one of {', '.join(allowed)}") + hint
    if missing := re.search(r"(the following arguments are required: )(.*)", message):
        shown = {a.dest: a.option_strings[0] if a.option_strings else a.metavar or a.dest for a in parser._actions}
        return f"{missing[1]}{', '.join(shown.get(name, name) for name in missing[2].split(', '))} (see {parser.prog} --help)"
    if unknown := re.search(r"unrecognized arguments: -*([\w.]+)|does not accept option '([\w.]+)'|Option '([\w.]+)'", message):
        return message + _nearest(next(filter(None, unknown.groups())), {action.dest for action in parser._actions} - {"help"})
    return message.replace("a <class 'list'>", "a list, written [a,b]")
