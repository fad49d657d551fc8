"""Parsers of the commands: options are the fields of the config dataclasses, and a wrong one is answered in one line."""

from __future__ import annotations

import argparse
import difflib
import re

from jsonargparse import ArgumentParser, set_parsing_settings

from otca.errors import InputError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def make_parser(command: str, description: str) -> ArgumentParser:
    """The parser of ``python -m otca COMMAND``, which raises instead of ending the program."""
    return ArgumentParser(prog=f"python -m otca {command}", description=description, exit_on_error=False)


def parse(parser: ArgumentParser, argv: list[str]):
    """Parse and build the dataclasses, or raise InputError in one line with the nearest valid name."""
    try:
        return parser.instantiate(parser.parse_args(argv))
    except argparse.ArgumentError as error:
        raise InputError(_with_nearest(str(error), parser)) from error


def _with_nearest(message: str, parser: ArgumentParser) -> str:
    """Add the nearest valid option, or the nearest valid value, to a message about an unknown one."""
    choice = re.search(r"typing.Literal\[(.*?)\].*Got value: (.*)", message, re.DOTALL)
    if choice:
        allowed = re.findall(r"'(.*?)'", choice[1])
        near = difflib.get_close_matches(choice[2].strip(), allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return message.replace(f"a typing.Literal[{choice[1]}]", f"one of {', '.join(allowed)}") + hint
    unknown = re.search(r"unrecognized arguments: -*([\w.]+)|does not accept option '([\w.]+)'|Option '([\w.]+)'", message)
    if not unknown:
        return message
    name = next(group for group in unknown.groups() if group)
    known = [a.dest for a in parser._actions if a.dest not in ("help",)]
    near = difflib.get_close_matches(name, known + [k.rpartition(".")[2] for k in known], n=1, cutoff=0.5)
    return f"{message}; did you mean {near[0]!r}?" if near else message
