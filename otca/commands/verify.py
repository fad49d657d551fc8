"""``python -m otca verify``: re-hash finished runs (rows, settings) and checkpoints below a folder."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from otca.errors import InputError, printable
from otca.parser import make_parser, parse


def parser() -> ArgumentParser:
    """What to verify."""
    out = make_parser("verify", "Re-hash every finished run (rows, settings) and every checkpoint (weights) below a folder.")
    out.add_argument("folder", type=Path, help="a run, a checkpoint, or any folder of them")
    return out


def run(argv: list[str]) -> None:
    """Print what is damaged, and how much was compared. Raises InputError where anything is."""
    from otca.files import HASHES, hash_integrity_errors
    from otca.runs import MANIFEST, integrity_errors

    folder = parse(parser(), argv).folder
    if not folder.is_dir():
        raise InputError(f"folder {folder} not found; give a run's folder, or one that holds runs")
    runs, checkpoints = (sorted(path.parent for path in folder.rglob(name)) for name in (MANIFEST, HASHES))
    if not (runs or checkpoints):
        raise InputError(f"{folder} holds neither a finished run ({MANIFEST}) nor a checkpoint ({HASHES})")
    found = [line for one in runs for line in integrity_errors(one)]
    for one in checkpoints:
        try:
            found += hash_integrity_errors(one)
        except InputError as error:
            found.append(str(error))
    print("\n".join([*map(printable, found), f"compared {len(runs)} runs and {len(checkpoints)} checkpoints: {folder}"]))
    if found:
        raise InputError(f"{len(found)} damaged in {folder}; restore these files or make the runs again")
