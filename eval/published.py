"""``sha256.json`` of the published results: the hash of every data file that no run's manifest has, written last of all.

    {"table1/cpu/table.csv": "<SHA-256>", "tuning/image-quick.csv": "<SHA-256>", …}

Paths are those below the folder that it lies in.
"""

from __future__ import annotations

from pathlib import Path

from eval.sources import RUN
from otca.errors import InputError
from otca.files import HASHES, changed_files, write_hashes
from otca.untrusted import read_object

DATA = (".csv", ".gz", ".json", ".jsonl", ".md", ".tex")
"""Endings of what is listed: figures, clips and the page are drawn from it."""

DESCRIPTION = "README.md"
"""The text on the results themselves, written by hand: no result."""


def published_files(results: Path) -> list[Path]:
    """Data files below published results, but those of runs, the description and the listing itself."""
    beside = {results / HASHES, results / DESCRIPTION}
    found = (path for path in results.rglob("*") if path.suffix in DATA and path not in beside and path.is_file())
    return sorted(path for path in found if not RUN.match(path.relative_to(results).as_posix()))


def write_listing(results: Path) -> None:
    """List these files with their SHA-256 in ``<results>/sha256.json``."""
    write_hashes(results, published_files(results))


def listing_damages(results: Path) -> list[str]:
    """A line for each data file that is missing, changed or not listed; empty where all are as they were listed."""
    try:
        listed = read_object(results / HASHES, "listing of published files")
    except InputError as error:
        return [str(error)]
    present = {path.relative_to(results).as_posix() for path in published_files(results)}
    lost = [f"{results / name} is missing" for name in listed if name not in present]
    changed = changed_files(results, {name: listed[name] for name in listed if name in present})
    strange = sorted(present - {*listed})
    return lost + changed + [f"{results / name} is not listed in {results / HASHES}" for name in strange]
