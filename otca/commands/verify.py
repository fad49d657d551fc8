"""``python -m otca verify``: re-hash runs, their rows and settings, their checkpoints, tables made of them, published files."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from otca.cli import make_parser, parse
from otca.errors import InputError


def parser() -> ArgumentParser:
    """What to verify."""
    out = make_parser(
        "verify",
        "Re-hash every finished run below a folder and every checkpoint (rows, settings, weights), make every table again from "
        "the rows of its runs, and re-hash what else was published with them.",
    )
    out.add_argument("folder", type=Path, help="a run, a table, or any folder of them, such as results/")
    return out


def run(argv: list[str]) -> None:
    """Print what is damaged, and how much was looked at. Raises InputError where anything is."""
    from eval.published import listing_damages, published_files
    from eval.sources import SOURCES, source_runs, table_damages
    from otca.files import HASHES, verify_hashes
    from otca.runs import damages

    folder = parse(parser(), argv).folder
    if not folder.is_dir():
        raise InputError(f"folder {folder} not found; give a run's folder, or one that holds runs")
    tables = sorted(path.parent for path in folder.rglob(SOURCES))
    listings = sorted(path.parent for path in folder.rglob(HASHES))
    found = [line for one in tables for line in table_damages(one)]
    runs = sorted(
        {*(path.parent for path in folder.rglob("manifest.json")), *(run for one in tables for run in source_runs(one))}
    )
    if not (runs or listings or tables):
        raise InputError(
            f"{folder} holds neither a finished run (manifest.json) nor a checkpoint ({HASHES}) nor a table ({SOURCES})"
        )
    results = [one for one in listings if any(one in inner.parents for inner in (*runs, *tables))]
    checkpoints = [one for one in listings if one not in results]
    found += [line for one in runs for line in damages(one)]
    found += [line for one in results for line in listing_damages(one)]
    for one in checkpoints:
        try:
            verify_hashes(one)
        except InputError as error:
            found.append(str(error))
    found = [*dict.fromkeys(found)]  # a table's files are listed twice
    listed = f", {sum(len(published_files(one)) for one in results)} published files" if results else ""
    looked = f"looked at {len(runs)} runs, {len(checkpoints)} checkpoints and {len(tables)} tables{listed}: {folder}"
    print("\n".join([*found, looked]))
    if found:
        raise InputError(f"{len(found)} damages in {folder}; restore these files, or delete the runs and make them again")
