"""A table of texts, as Markdown, LaTeX and on a terminal; whatever comes from outside is plain text, never markup."""

from __future__ import annotations

import re
import textwrap

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

TEX = {c: "\\" + c for c in "{}$&#_%"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "−": "$-$", "<": r"$<$", ">": r"$>$", "≥": r"$\geq$"}

Grid = dict[str, list[str]]  # column heading → one cell a row, as plain text; a `Bold` one is set so


class Bold(str):
    """Text of a bold cell."""

    __slots__ = ()


def number(value: float, decimals: int) -> str:
    """A value with so many decimals, commas between thousands and a true minus sign; a dash for NaN."""
    text = f"{value:,.{decimals}f}"
    return "–" if np.isnan(value) else text.replace("-", "" if not text.strip("-0.") else "−")


def interval(low: float, high: float, decimals: int) -> str:
    """An interval in brackets after a space; nothing where it is NaN."""
    return "" if np.isnan(low) or np.isnan(high) else f" [{number(low, decimals)}, {number(high, decimals)}]"


def markdown_table(grid: Grid) -> str:
    """A Markdown table."""
    cells = [[f"**{markdown(text)}**" if isinstance(text, Bold) else markdown(text) for text in texts] for texts in grid.values()]
    lines = [[markdown(head) for head in grid], ["---"] + ["---:"] * (len(grid) - 1), *zip(*cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_table(grid: Grid) -> str:
    """A LaTeX tabular (booktabs)."""
    cells = [[rf"\textbf{{{latex(t)}}}" if isinstance(t, Bold) else latex(t) for t in texts] for texts in grid.values()]
    head, *body = [" & ".join(line) + r" \\" for line in ([latex(head) for head in grid], *zip(*cells))]
    start = rf"\begin{{tabular}}{{l{'r' * (len(grid) - 1)}}}"
    return "\n".join([start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def show(title: str, grid: Grid, sentence: str = "") -> None:
    """Print a table, at most as wide as the terminal, and a sentence of what it shows."""
    console = Console()
    table = Table(title=Text(title), box=SIMPLE, pad_edge=False, collapse_padding=True, title_justify="left")
    for i, head in enumerate(grid):
        broken = Text("\n".join(textwrap.wrap(head, 12)))
        table.add_column(broken, justify="right" if i else "left", overflow="fold", no_wrap=not i)
    for row in zip(*grid.values()):
        table.add_row(*(Text(text, "bold" if isinstance(text, Bold) else "") for text in row))
    console.print(table)
    if sentence:
        console.print(sentence, markup=False, highlight=False)


def markdown(text: str) -> str:
    """Plain text as Markdown: one line, and nothing in it is markup."""
    return re.sub(r"([\\`*_|<>$&~#]|\](?=\())", r"\\\1", one_line(text))


def latex(text: str) -> str:
    """Plain text as LaTeX, in one line."""
    return "".join(TEX.get(c, c) for c in one_line(text))


def one_line(text: str) -> str:
    """Runs of white space become one space each."""
    return " ".join(str(text).split())
