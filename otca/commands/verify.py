"""``python -m otca verify``: re-hash runs, their rows and settings, their checkpoints, and tables made of them."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from otca.cli import make_parser, parse
from otca.errors import InputError


def parser() -> ArgumentParser:
    """What to verify."""
    out = make_parser(
        "verify",
        "Re-hash every finished run below a folder and every checkpoint (rows, settings, weights), and make every table again "
        "from the rows of its runs.",
    )
    out.add_argument("folder", type=Path, help="a run, a table, or any folder of them, such as results/")
    return out


def run(argv: list[str]) -> None:
    """Print what is damaged, and how much was looked at. Raises InputError where anything is."""
    from eval.sources import SOURCES, source_runs, table_damages
    from otca.files import HASHES, verify_hashes
    from otca.runs import damages

    folder = parse(parser(), argv).folder
    if not folder.is_dir():
        raise InputError(f"folder {folder} not found; give a run's folder, or one that holds runs")
    tables = sorted(path.parent for path in folder.rglob(SOURCES))
    checkpoints = sorted(path.parent for path in folder.rglob(HASHES))
    found = [line for one in tables for line in table_damages(one)]
    runs = sorted(
        {*(path.parent for path in folder.rglob("manifest.json")), *(run for one in tables for run in source_runs(one))}
    )
    if not (runs or checkpoints or tables):
        raise InputError(
            f"{folder} holds neither a finished run (manifest.json) nor a checkpoint ({HASHES}) nor a table ({SOURCES})"
        )
    found += [line for one in runs for line in damages(one)]
    for one in checkpoints:
        try:
            verify_hashes(one)
        except InputError as error:
            found.append(str(error))
    looked = f"looked at {len(runs)} runs, {len(checkpoints)} checkpoints and {len(tables)} tables: {folder}"
    print("\n".join([*found, looked]))
    if found:
        raise InputError(f"{len(found)} damages in {folder}; restore these files, or delete the runs and make them again")
