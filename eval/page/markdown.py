"""The Markdown that this repository writes (`eval.markup`), read back as blocks of plain text.

So the page says what the published ``.md`` files say, word for word and digit for digit. Only what our own programs write is
read: headings, paragraphs, lists of one level, tables whose cells are plain or bold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from otca.errors import InputError

ESCAPED = re.compile(r"\\([\\`*_|<>$&~#\]])")
"""What `eval.markup.markdown` puts a backslash before."""


@dataclass(frozen=True)
class Heading:
    """``#`` to ``####``: level and text."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Lines up to a blank one, as one line."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Cells:
    """A table: headings, rows of texts, and which cells are bold, as (row, column)."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]]


Block = Heading | Paragraph | Items | Cells


def read_markdown(path: Path) -> list[Block]:
    """The blocks of a published ``.md`` file, in its order. Raises InputError on a table whose rows differ in length."""
    parts: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            parts.append([])
        elif line.startswith("#"):
            parts += [[line], []]
        else:
            parts[-1].append(line)
    return [_block(lines, path) for lines in parts if lines]


def _block(lines: list[str], path: Path) -> Block:
    if lines[0].startswith("#"):
        marks, _, text = lines[0].partition(" ")
        return Heading(len(marks), plain(text))
    if lines[0].startswith("- "):
        return Items(tuple(plain(item) for item in "\n".join(lines).removeprefix("- ").split("\n- ")))
    return _cells(lines, path) if lines[0].startswith("|") else Paragraph(plain(" ".join(lines)))


def _cells(lines: list[str], path: Path) -> Cells:
    head, _, *body = ([cell.strip() for cell in line.removeprefix("|").removesuffix("|").split(" | ")] for line in lines)
    odd = [line for line, row in zip(lines[2:], body) if len(row) != len(head)]
    if odd:
        raise InputError(f"{path}: a table of {len(head)} columns has the row {odd[0]!r}; render it again")
    bold = {(i, j) for i, row in enumerate(body) for j, cell in enumerate(row) if re.fullmatch(r"\*\*.+\*\*", cell)}
    rows = tuple(tuple(plain(cell[2:-2] if (i, j) in bold else cell) for j, cell in enumerate(row)) for i, row in enumerate(body))
    return Cells(tuple(map(plain, head)), rows, frozenset(bold))


def plain(text: str) -> str:
    """Markdown as plain text in one line: the inverse of `eval.markup.markdown`."""
    return ESCAPED.sub(r"\1", " ".join(text.split()))
