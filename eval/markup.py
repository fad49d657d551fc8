"""Plain text as Markdown and LaTeX: cells of tables, and whatever else came from outside; nothing in it is markup."""

from __future__ import annotations

import re

import numpy as np

TEX = {c: "\\" + c for c in "{}$&#_%"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--", "−": "$-$", "<": r"$<$", ">": r"$>$"}

Grid = dict[str, list[tuple[str, bool]]]
"""Column heading → one cell a method: text and whether it is bold."""


def number(value: float, decimals: int) -> str:
    """A value with so many decimals and a true minus sign; a dash for NaN."""
    text = f"{value:.{decimals}f}"
    return "–" if np.isnan(value) else text.replace("-", "" if float(text) == 0 else "−")


def interval(low: float, high: float, decimals: int) -> str:
    """An interval in brackets after a space; nothing where it is NaN."""
    return "" if np.isnan(low) or np.isnan(high) else f" [{number(low, decimals)}, {number(high, decimals)}]"


def markdown_table(grid: Grid) -> str:
    """A Markdown table; every text is plain."""
    rows = [[f"**{markdown(text)}**" if bold else markdown(text) for text, bold in row] for row in zip(*grid.values())]
    lines = [[markdown(head) for head in grid], ["---"] + ["---:"] * (len(grid) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex_table(grid: Grid) -> str:
    """A LaTeX tabular (booktabs); every text is plain."""
    rows = [[rf"\textbf{{{latex(text)}}}" if bold else latex(text) for text, bold in row] for row in zip(*grid.values())]
    head, *body = [" & ".join(line) + r" \\" for line in ([latex(head) for head in grid], *rows)]
    start = rf"\begin{{tabular}}{{l{'r' * (len(grid) - 1)}}}"
    return "\n".join([start, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def markdown(text: str) -> str:
    """Plain text as Markdown: one line, and nothing in it is markup."""
    return re.sub(r"([\\`*_|<>$&~#]|\](?=\())", r"\\\1", one_line(text))


def latex(text: str) -> str:
    """Plain text as LaTeX, in one line."""
    return "".join(TEX.get(c, c) for c in one_line(text))


def one_line(text: str) -> str:
    """Runs of white space become one space each."""
    return " ".join(str(text).split())
