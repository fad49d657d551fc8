"""Published tables as data of the page: what their ``.md`` says, what each cell says in full, and the rows it was made from.

Every ``.md`` below the results is a document, found, not listed; one beside a ``sources.json`` is a table of runs, whose cells
lead to the rows of their runs, and so do those of its pairs, which follow it. Small CSV files that no ``.md`` describes are
documents of their own; of larger ones the page has the link.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from eval.columns import METRICS
from eval.page.markdown import Block, Cells, Heading, Items, Paragraph, read_markdown
from eval.published import PICTURES
from eval.sources import RUN, SOURCES, read_sources
from eval.tables import DIFFERENCE_HEADS, differences, heading, verdict
from otca.errors import InputError
from otca.files import HASHES

GROUPS = ("table1", "table2", "table3", "table4", "credit_fidelity", "ablations", "gradient_signal", "embedded", "fuzz")
"""Order of the folders on the page; others follow by name."""

TIERS = ("paper", "cpu", "study", "quick")
"""Order of the tiers, those that say most first."""

ROWS = ("scores.csv.gz", "sets.csv", "manifest.json")
"""Files of a run that cells lead to."""

FIGURES = (".svg", ".png", ".mp4", ".webp")

MOST_ROWS = 60
"""Rows up to which a CSV file without a text is shown as a table."""

MEDIA = ("image", "video")

PAIRS = "pairs"
"""Folder of the differences beyond those of a table: ``pairs/<the table's folder with dashes>.md``."""

IN_FULL = ("n_seeds", "mean", "iqm", "ci_low", "ci_high", "network_evaluations", "reward_calls")
"""Columns of table.csv that a cell shows in full, as they are written there."""


def documents(results: Path) -> list[dict]:
    """Every published table below ``results``, in the page's order.

    Each: ``id``, ``title``, ``folder`` (below the results), ``blocks`` (texts and tables), ``files`` (its data) and ``figures``
    (paths below the results), whether it is a CSV file alone (``rows``); of a table of runs also ``cells`` (of each section,
    `_in_full`), ``runs`` ({modality: {method: [[path, hash], …]}}) and ``sets`` ({modality: metrics of whole sets}); of pairs
    ``of``, the folder of their table.
    Raises InputError on a table that does not fit its sources.
    """
    texts = sorted(path for path in results.rglob("*.md") if path.parent != results)
    described = {path.parent for path in texts}
    alone = [
        path
        for pattern in ("*.csv", "*.csv.gz", "*.json")
        for path in sorted(results.rglob(pattern))
        if path.parent not in described and not RUN.match(path.relative_to(results).as_posix())
    ]
    small = {path: rows for path in alone if path.suffix == ".csv" and len(rows := _plain_rows(path)) <= MOST_ROWS}
    out = [_document(path, results) for path in texts] + [_of_rows(path, rows, results) for path, rows in small.items()]
    titles = [document["title"] for document in out]
    for document in out:
        if titles.count(document["title"]) > 1:
            document["title"] += f" ({document['id'].rpartition('/')[2]})"
    return sorted(out, key=lambda document: (document["rows"], _order(document.get("of") or document["id"]), "of" in document))


def other_files(results: Path, shown: Iterable[dict]) -> list[str]:
    """Published CSV and JSON files outside of runs that no document shows or links, by name: paths below ``results``.

    The listings of hashes, written after the page, are not among them.
    """
    linked = {name for document in shown for name in document["files"]}
    found = (path.relative_to(results).as_posix() for ext in ("csv", "csv.gz", "json") for path in results.rglob(f"*.{ext}"))
    return sorted(name for name in found if name not in linked and name not in (HASHES, PICTURES) and not RUN.match(name))


def _order(name: str) -> tuple:
    """Place of a document: its group, then its tier, then its name."""
    group, tier = name.split("/")[0], next((part for part in name.split("/") if part in TIERS), "")
    return (GROUPS.index(group) if group in GROUPS else len(GROUPS), group, TIERS.index(tier) if tier else -1, name)


def _document(path: Path, results: Path) -> dict:
    """What a ``.md`` and the files beside it make."""
    folder, blocks = path.parent, read_markdown(path)
    beside = sorted(file for file in folder.iterdir() if file.is_file())
    several = len(list(folder.glob("*.md"))) > 1
    own = [file for file in beside if not several or file.name.startswith(f"{path.stem}.")]
    below = folder.relative_to(results).as_posix()
    out = {
        "id": f"{below}/{path.stem}" if several else below,
        "title": f"{below.replace('_', ' ').replace('/', ', ').capitalize()}",
        "folder": below,
        "files": [f"{below}/{file.name}" for file in own if file.suffix in (".csv", ".gz", ".json", ".md", ".tex")],
        "figures": [f"{below}/{file.name}" for file in own if file.suffix in FIGURES],
        "rows": False,
        "cells": {},
        "runs": {},
    }
    if isinstance(blocks[0], Heading) and blocks[0].level == 1:
        out["title"], blocks = blocks[0].text, blocks[1:]
    place = next((modality for modality in MEDIA if modality in (*Path(below).parts, path.stem)), "")
    if SOURCES in (file.name for file in beside):
        return out | _table_of_runs(folder, results, blocks)
    if below == PAIRS:
        return out | _pairs(path.stem, results, blocks)
    return out | {"blocks": [_plain_block(block, place) for block in blocks]}


def _plain_block(block: Block, modality: str) -> dict:
    """One block of a text: ``kind`` and what it holds."""
    match block:
        case Heading(_, text):
            return {"kind": "heading", "text": text, "modality": modality}
        case Paragraph(text):
            return {"kind": "text", "text": text, "modality": modality}
        case Items(texts):
            return {"kind": "list", "texts": texts, "modality": modality}
        case Cells(heads, rows, bold):
            shown = {"kind": "table", "heads": heads, "rows": rows, "bold": sorted(bold), "modality": modality}
            return shown | {"metrics": [""] * len(heads), "skills": [""] * len(heads)}


def _pairs(name: str, results: Path, blocks: list[Block]) -> dict:
    """Blocks of the pairs of a table: each section's metric, and the method that it (or, in a column Of, a row) compares with."""
    tables = {path.parent.relative_to(results).as_posix().replace("/", "-"): path.parent for path in results.rglob(SOURCES)}
    media = [*_runs(tables[name], results)] if name in tables else []
    modality = media[0] if len(media) == 1 else ""
    out, metric, against = [], "", ""
    for block in blocks:
        if isinstance(block, Heading):
            metric = next((m for m in METRICS if block.text.startswith(f"{METRICS[m].label}: difference ")), "")
            against = block.text.partition(": difference from ")[2]
        shown = _plain_block(block, modality)
        if isinstance(block, Cells) and metric:
            shown |= {"metrics": [metric if head in DIFFERENCE_HEADS else "" for head in block.heads]}
            shown |= {"label": METRICS[metric].label, "against": against}
        out.append(shown)
    return {"blocks": out} | ({"of": tables[name].relative_to(results).as_posix()} if modality else {})


def _table_of_runs(folder: Path, results: Path, blocks: list[Block]) -> dict:
    """Blocks of a table.md with the metric and skill of every column, and what its cells and rows are."""
    table = pd.read_csv(folder / "table.csv")
    parts = [(*at, part) for at, part in table.groupby(["modality", "budget"], sort=False)]
    at, metric, out, cells = -1, "", [], {}
    for block in blocks:
        if isinstance(block, Heading):
            metric = next((m for m in METRICS if block.text.startswith(f"{METRICS[m].label}: difference from ")), "")
        if isinstance(block, Paragraph) and block.text.startswith("Budget: "):
            at += 1
            _check_section(folder, block.text, parts, at)
        new_modality = isinstance(block, Heading) and block.text.lower() in set(table["modality"])
        modality = parts[at + new_modality][0] if 0 <= at + new_modality < len(parts) else ""
        shown = _plain_block(block, "" if isinstance(block, Items) else modality)
        if isinstance(block, Cells):
            present = {heading(m): m for m in METRICS if (parts[at][2]["metric"] == m).any()}
            shown["metrics"] = ["", *(metric or present.get(head, "") for head in block.heads[1:])]
            shown["skills"] = ["" if metric else name.partition("/")[2] for name in shown["metrics"]]
            shown |= {"section": at, "against": parts[at][2]["baseline"].iloc[0]}
            shown |= {"label": METRICS[metric].label} if metric else {}
            of_section = cells.setdefault(str(at), _in_full(parts[at][2]))
            if metric and block.heads[1:] != DIFFERENCE_HEADS:
                raise InputError(f"{folder}/table.md has differences under {block.heads[1:]}; render the table again")
            for method, *texts in block.rows if metric else ():  # as published: table.csv has fewer digits to round from
                of_section[metric][method]["difference"] = texts
        out.append(shown)
    if at + 1 != len(parts):
        raise InputError(f"{folder}/table.md has {at + 1} sections, table.csv {len(parts)}; render the table again")
    runs = _runs(folder, results)
    firsts = {modality: next(iter(of_method.values()))[0][0] for modality, of_method in runs.items()}
    sets = {modality: pd.read_csv(results / run / "sets.csv")["metric"].tolist() for modality, run in firsts.items()}
    return {"blocks": out, "cells": cells, "runs": runs, "sets": sets}


def _check_section(folder: Path, said: str, parts: list[tuple], at: int) -> None:
    """Raise InputError unless a section of table.md is the one that table.csv has at that place."""
    if at >= len(parts):
        raise InputError(f"{folder}/table.md has more sections than table.csv; render the table again")
    found = f"Budget: {parts[at][1]}. Baseline: {parts[at][2]['baseline'].iloc[0]}."
    if said != found:
        raise InputError(f"{folder}/table.md says {said!r} where table.csv has {found!r}; render the table again")


def _in_full(part: pd.DataFrame) -> dict:
    """{metric: {method: {"csv": values under `IN_FULL`, "difference": texts under `DIFFERENCE_HEADS`, "said": verdict}}}."""
    texts = part.astype({name: str for name in IN_FULL})
    out: dict[str, dict] = {}
    for metric in part["metric"].unique():
        of_metric = texts[texts["metric"] == metric]
        of_method = {row["method"]: {"csv": [row[name] for name in IN_FULL]} for _, row in of_metric.iterrows()}
        grid = differences(part, metric)
        for i, (method, _) in enumerate(grid["Method"]):
            of_method[method]["difference"] = [grid[head][i][0] for head in DIFFERENCE_HEADS]
            of_method[method]["said"] = verdict(part, metric, method)
        out[metric] = of_method
    return out


def _runs(folder: Path, results: Path) -> dict[str, dict[str, list[list[str]]]]:
    """Runs of a table by modality and method. Raises InputError where one is not published."""
    root, runs, _ = read_sources(folder)
    out: dict[str, dict[str, list[list[str]]]] = {}
    for run, digest in runs.items():
        missing = [name for name in ROWS if not (results / run / name).is_file()]
        if root.resolve() != results.resolve() or missing:
            lacking = f"lacks {', '.join(missing)}" if missing else f"is not below {results}"
            raise InputError(f"{folder / SOURCES} lists {run}, which {lacking}; publish the run")
        modality, _, method, _ = RUN.fullmatch(run).groups()
        out.setdefault(modality, {}).setdefault(method, []).append([run, str(digest)])
    return out


def _plain_rows(path: Path) -> pd.DataFrame:
    """A CSV file as texts. Raises InputError where it cannot be read as such."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is no CSV file with a header ({' '.join(str(error).split())})") from error


def _of_rows(path: Path, rows: pd.DataFrame, results: Path) -> dict:
    """A document of one small CSV file."""
    name = path.relative_to(results).as_posix()
    place = next((modality for modality in MEDIA if re.search(rf"\b{modality}\b", name)), "")
    block = Cells(tuple(rows.columns), tuple(map(tuple, rows.to_numpy().tolist())), frozenset())
    return {
        "id": name.removesuffix(".csv"),
        "title": f"{path.parent.relative_to(results).as_posix().replace('_', ' ').replace('/', ', ')}: {path.stem}".capitalize(),
        "folder": path.parent.relative_to(results).as_posix(),
        "files": [name],
        "figures": [],
        "blocks": [_plain_block(block, place)],
        "rows": True,
        "cells": {},
        "runs": {},
    }
