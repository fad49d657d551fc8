"""A method's row of a published table as Markdown: means, intervals, seeds, costs, and the difference from the baseline.

    row = published_row(RESULTS, "image", "cpu", "otca")
    print("\\n\\n".join(row_as_markdown(row, manifest["hash"])))

Texts are those of table.md, digit for digit: table.csv has six digits, and to round these once more would now and then give
another last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.columns import METRICS
from eval.markup import Grid, markdown, markdown_table, one_line
from eval.page.markdown import Block, Cells, Heading, Items, Paragraph, read_markdown
from eval.sources import FILES, RUN, SOURCES, read_sources
from eval.tables import TABLE_COLUMNS, verdict
from otca.errors import InputError
from otca.files import changed_files

RESULTS = Path(__file__).parent.parent / "results"
"""The published tables of this repository; an installed copy may lack them."""

NUMBERS = {"n_seeds": int} | dict.fromkeys(("diff", "diff_low", "diff_high", "p_paired"), float)
"""Columns of table.csv that a sentence is made from."""


@dataclass(frozen=True)
class PublishedRow:
    """Where a method stands in a published table, among the rows of the same modality and budget (the table's section).

    ``title`` and ``folder`` (below the results) are the table's; ``table``: the section's part of table.csv; ``blocks``: its part
    of table.md, and the notes; ``hashes``: of the manifests of the method's runs that the row was made from, by run.
    """

    title: str
    folder: str
    method: str
    table: pd.DataFrame
    blocks: Sequence[Block]
    hashes: Mapping[str, str]

    @property
    def baseline(self) -> str:
        """The method that differences are from."""
        return self.table["baseline"].iloc[0]


def published_row(results: Path, modality: str, tier: str, method: str) -> PublishedRow | None:
    """The row of a method (``otca``, ``otca@rho0``) in the first published table of its modality and tier that has it, or None.

    Tables are the folders ``<table>/<tier>`` below ``results``, by name, then those of families, ``ablations/<family>/<tier>``.
    What lacks one of a table's files is none. Raises InputError, naming the file, for one that was changed after it was written.
    """
    found = [path for pattern in ("*/*", "*/*/*") for path in sorted(results.glob(f"{pattern}/table.csv"))]
    for folder in (path.parent for path in found if path.parent.name == tier):
        if not all((folder / name).is_file() for name in (*FILES, SOURCES)):
            continue
        _, sources, files = read_sources(folder)
        changed = changed_files(folder, files)
        if changed:
            raise InputError(f"{changed[0]}; render the table again")
        parts = [part for _, part in _table(folder / "table.csv").groupby(["modality", "budget"], sort=False)]
        for at, part in enumerate(parts):
            if part["modality"].iloc[0] == modality and (part["method"] == method).any():
                title, blocks = _section(folder / "table.md", parts, at)
                if not any(_rows_of(block, [method]) for block in blocks):
                    raise InputError(f"{folder / 'table.md'} lacks {method!r}, which table.csv has; render the table again")
                runs = {run: digest for run, digest in sources.items() if _arm(run) == (modality, tier, method)}
                return PublishedRow(title, folder.relative_to(results).as_posix(), method, part, blocks, runs)
    return None


def row_as_markdown(row: PublishedRow, run_hash: str) -> list[str]:
    """Paragraphs and tables of Markdown, all text in them plain: the row beside its baseline's, the difference, the notes.

    ``run_hash``: of the manifest of a run of the method; it is said whether the row was made from that run too.
    """
    seeds = f"{len(row.hashes)} seed{'' if len(row.hashes) == 1 else 's'}"
    one_of_them = "This run is one of them." if run_hash in row.hashes.values() else "This run is not one of them."
    where = f"*{markdown(row.title)}* ({markdown(row.folder)} of the published results)"
    if row.method == row.baseline:
        out = [f"{where} has this run's method as its baseline, over {seeds}. {one_of_them}"]
    else:
        out = [f"{where} has this run's method, over {seeds}; the baseline is below it. {one_of_them}"]
    shown, heading = list(dict.fromkeys((row.method, row.baseline))), ""
    for block in row.blocks:
        match block:
            case Heading(_, text):
                heading = text
            case Paragraph(text):
                out.append(markdown(text))
            case Items(texts):
                out.append("\n".join(f"- {markdown(text)}" for text in texts))
            case Cells():
                if _rows_of(block, [row.method]):
                    out += [f"### {markdown(heading)}"] if heading else []
                    out += [markdown_table(_rows_of(block, shown)), *_said(row, heading)]
                heading = ""
    return out


def _said(row: PublishedRow, heading: str) -> list[str]:
    """What the difference shows in a sentence, under the heading of a table of differences; nothing under others."""
    metrics = [m for m in row.table.loc[row.table["method"] == row.method, "metric"] if m in METRICS]
    of_heading = [m for m in metrics if heading == f"{METRICS[m].label}: difference from {one_line(row.baseline)}"]
    return [markdown(verdict(row.table, metric, row.method)) for metric in of_heading]


def _rows_of(block: Block, methods: list[str]) -> Grid:
    """Those rows of a table of table.md whose first cell is one of the methods, in their order; empty where there is none."""
    if not isinstance(block, Cells):
        return {}
    at = [i for method in methods for i, cells in enumerate(block.rows) if cells[0] == one_line(method)]
    return {head: [(block.rows[i][j], (i, j) in block.bold) for i in at] for j, head in enumerate(block.heads) if at}


def _section(path: Path, parts: list[pd.DataFrame], at: int) -> tuple[str, list[Block]]:
    """Title of a table.md, and the blocks of its section of that number with the notes, which are last.

    Raises InputError unless its sections are those of table.csv.
    """
    blocks = read_markdown(path)
    starts = [i for i, block in enumerate(blocks) if isinstance(block, Paragraph) and block.text.startswith("Budget: ")]
    first = [part.iloc[0] for part in parts]
    expected = [f"Budget: {one_line(row['budget'])}. Baseline: {one_line(row['baseline'])}." for row in first]
    if [blocks[i].text for i in starts] != expected or not isinstance(blocks[0], Heading):
        raise InputError(f"{path} has not the sections of table.csv; render the table again")
    section = blocks[starts[at] : [*starts, len(blocks)][at + 1]]
    notes = [block for block in blocks[-1:] if isinstance(block, Items) and block not in section]
    return blocks[0].text, section + notes


def _table(path: Path) -> pd.DataFrame:
    """The rows of a table.csv. Raises InputError where it has not the columns of one."""
    try:
        table = pd.read_csv(path, dtype=NUMBERS)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no published table ({one_line(error)}); render it again") from error
    if tuple(table.columns) != TABLE_COLUMNS:
        raise InputError(f"{path} has not the columns of a published table; render it again")
    return table


def _arm(run: str) -> tuple[str, ...]:
    """Medium, tier and method of a run's path."""
    return RUN.fullmatch(run).groups()[:3]
