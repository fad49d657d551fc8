"""``python -m otca verify``: re-hash runs, their rows and settings, and the checkpoints that they keep."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from otca.cli import make_parser, parse
from otca.errors import InputError


def parser() -> ArgumentParser:
    """What to verify."""
    out = make_parser("verify", "Re-hash every finished run below a folder, and every checkpoint: rows, settings, weights.")
    out.add_argument("folder", type=Path, help="a run, or any folder of runs, such as results/")
    return out


def run(argv: list[str]) -> None:
    """Print what is damaged, and how much was looked at. Raises InputError where anything is."""
    from otca.files import HASHES, verify_hashes
    from otca.runs import damages

    folder = parse(parser(), argv).folder
    if not folder.is_dir():
        raise InputError(f"folder {folder} not found; give a run's folder, or one that holds runs")
    runs = sorted(path.parent for path in folder.rglob("manifest.json"))
    checkpoints = sorted(path.parent for path in folder.rglob(HASHES))
    if not runs and not checkpoints:
        raise InputError(f"{folder} holds neither a finished run (manifest.json) nor a checkpoint ({HASHES})")
    found = [line for one in runs for line in damages(one)]
    for one in checkpoints:
        try:
            verify_hashes(one)
        except InputError as error:
            found.append(str(error))
    print("\n".join([*found, f"looked at {len(runs)} runs and {len(checkpoints)} checkpoints: {folder}"]))
    if found:
        raise InputError(f"{len(found)} damages in {folder}; restore these files, or delete the runs and make them again")
