"""``python -m otca verify``: re-hash runs, their rows and settings, their checkpoints, tables made of them, published files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jsonargparse import ArgumentParser

from otca.cli import make_parser, parse
from otca.errors import InputError, printable


def parser() -> ArgumentParser:
    """What to verify."""
    out = make_parser(
        "verify",
        "Re-hash every finished run below a folder and every checkpoint (rows, settings, weights), and make every table again "
        "from the rows of its runs. Where runs and tables are published together, re-hash all else there too (data, figures, "
        "clips, samples, page), and tell files that nothing lists, runs in another's place and runs of no table.",
    )
    out.add_argument("folder", type=Path, help="a run, a table, or any folder of them, such as results/")
    return out


def run(argv: list[str]) -> None:
    """Print what is damaged, and how much was compared. Raises InputError where anything is."""
    from eval.published import PICTURES, listing_integrity_errors, published_files, published_roots, run_integrity_errors
    from eval.sources import SOURCES, source_runs
    from otca.files import HASHES
    from otca.runs import MANIFEST, integrity_errors

    folder = parse(parser(), argv).folder
    if not folder.is_dir():
        raise InputError(f"folder {folder} not found; give a run's folder, or one that holds runs")
    tables = sorted(path.parent for path in folder.rglob(SOURCES))
    named = (run for one in tables for run in source_runs(one) if run.is_dir())
    runs = sorted({*(path.parent for path in folder.rglob(MANIFEST)), *named})
    roots = published_roots(folder, runs, tables)
    checkpoints = sorted(path.parent for path in folder.rglob(HASHES) if path.parent not in roots)
    if not (runs or roots or checkpoints or tables):
        raise InputError(
            f"{folder} holds neither a finished run ({MANIFEST}) nor a checkpoint ({HASHES}) nor a table ({SOURCES})"
        )
    published = [published_files(root) for root in roots]
    found = [
        *_damages_of_tables(tables),
        *(line for one in runs for line in integrity_errors(one)),
        *(line for one in published for line in (*run_integrity_errors(one), *listing_integrity_errors(one))),
        *(line for one in checkpoints for line in _damages_of_checkpoint(one)),
    ]
    found = [*dict.fromkeys(found)]  # a table's files are listed twice
    compared = [counted(len(runs), "run"), counted(len(checkpoints), "checkpoint"), counted(len(tables), "table")]
    if published:
        data = sum(len(one.data) for one in published if (one.root / HASHES).is_file())
        pictures = sum(len(one.pictures) for one in published if (one.root / PICTURES).is_file())
        compared += [counted(data, "data file"), f"{counted(pictures, 'picture')} (figures, clips, page, media of a run)"]
    print("\n".join([*map(printable, found), f"compared {', '.join(compared)}: {folder}"]))
    if found:
        anew = "".join(f"; list what is right as it is with python -m reproduce.page --results {root}" for root in roots)
        way_out = f"restore these files, delete what is not listed, or make the runs again{anew}"
        raise InputError(f"{counted(len(found), 'damage')} in {folder}; {way_out}")


def counted(number: int, thing: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _damages_of_tables(tables: Iterable[Path]) -> list[str]:
    """What is wrong with tables; of a missing run one line, whatever number of tables was made from it."""
    from eval.sources import source_runs, table_integrity_errors

    out = [line for one in tables for line in table_integrity_errors(one)]
    lost: dict[Path, list[Path]] = {}
    for one in tables:
        for run in source_runs(one):
            if not run.is_dir():
                lost.setdefault(run, []).append(one)
    for run, (first, *others) in lost.items():
        made = f"{first} and {counted(len(others), 'more table')} were" if others else f"{first} was"
        out.append(f"run {run} is missing, from which {made} made")
    return out


def _damages_of_checkpoint(folder: Path) -> list[str]:
    from otca.files import hash_integrity_errors

    try:
        return hash_integrity_errors(folder)
    except InputError as error:
        return [str(error)]
