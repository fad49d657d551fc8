"""Hashes of published results, written last of all: ``sha256.json`` of data, ``pictures.json`` of what is made from them.

    sha256.json    {"table1/cpu/table.csv": "<SHA-256>", "tuning/image-quick.csv": "<SHA-256>", …}
    pictures.json  {"index.html": "<SHA-256>", "image/cpu/otca/seed0/media/": "<one SHA-256 of the files in it>", …}

Paths are those below the folder that both lie in, where those of runs begin. Data come out byte for byte the same wherever they
are rendered, figures and clips need not: hence two listings, of which .ci/run compares the first. Rows of runs are in neither, as
each run's manifest has their hashes; its samples in ``media/`` are in the second, a folder at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from eval.sources import RUN, SOURCES, read_sources
from otca.errors import InputError
from otca.files import HASHES, changed_files, sha256, sha256_tree, write_hashes, write_listing
from otca.runs import MANIFEST, read_manifest
from otca.untrusted import read_object

PICTURES = "pictures.json"
"""Name of the listing of all that is no data, beside `HASHES`."""

DATA = (".csv", ".gz", ".json", ".jsonl", ".md", ".tex")
"""Endings of data: figures, clips and the page are drawn from them."""

DESCRIPTION = "README.md"
"""The text on the results themselves, written by hand: no data."""

MEDIA = "media/"
"""Folder of a run's samples."""

IN_RUN = re.compile(f"(?P<run>{RUN.pattern})/(?P<inner>.+)", re.DOTALL)


@dataclass(frozen=True)
class Published:
    """The files below ``root`` by what has their hash, as paths below it, sorted.

    data      listed in sha256.json
    pictures  listed in pictures.json, ``<run>/media/`` for the samples of a run among them
    runs      of each run's folder the other files in it, as paths below that folder: the manifest, and what it lists
    """

    root: Path
    data: tuple[str, ...]
    pictures: tuple[str, ...]
    runs: dict[str, list[str]]


def published_files(root: Path) -> Published:
    """Sort all files below a folder of published results; a run's folder is one in a run's place, or one of a misplaced run."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    strayed = {name.removesuffix(f"/{MANIFEST}") for name in names if re.search(rf"(^|/)seed[^/]*/{MANIFEST}$", name)}
    data, pictures, runs = [], set(), {}
    for name in names:
        run, inner = _in_run(name, strayed)
        if run and inner.startswith(MEDIA):
            pictures.add(f"{run}/{MEDIA}")
            runs.setdefault(run, [])
        elif run:
            runs.setdefault(run, []).append(inner)
        elif name.endswith(DATA) and name != DESCRIPTION:
            data.append(name)
        else:
            pictures.add(name)
    beside = {HASHES, PICTURES}
    return Published(root, tuple(name for name in data if name not in beside), tuple(sorted(pictures)), runs)


def _in_run(name: str, strayed: set[str]) -> tuple[str, str]:
    """Folder of the run that a file lies in, and its path there; nothing where it lies in none."""
    match = IN_RUN.fullmatch(name)
    if match:
        return match["run"], match["inner"]
    parts = name.split("/")
    for n in range(1, len(parts)):
        if "/".join(parts[:n]) in strayed:
            return "/".join(parts[:n]), "/".join(parts[n:])
    return "", name


def write_listings(root: Path) -> None:
    """List all files that are no rows of runs, with their SHA-256, in ``<root>/sha256.json`` and ``<root>/pictures.json``."""
    files = published_files(root)
    write_hashes(root, [root / name for name in files.data])
    digests = {name: (sha256_tree if name.endswith("/") else sha256)(root / name) for name in files.pictures}
    write_listing(root / PICTURES, digests)


def list_picture(picture: Path) -> None:
    """List one new picture anew in the ``pictures.json`` beside it, where there is one; all else stays listed as it was."""
    path = picture.parent / PICTURES
    if path.is_file():
        listed = read_object(path, "listing of pictures") | {picture.name: sha256(picture)}
        write_listing(path, dict(sorted(listed.items())))


def published_roots(folder: Path, runs: Iterable[Path], tables: Iterable[Path]) -> list[Path]:
    """The outermost folders, this one or below it, that hold runs, each in a run's place, and tables: what is published.

    So is a folder with a ``sha256.json`` and runs or tables somewhere below it.
    """
    runs, tables = [run for run in runs if folder in run.parents], [*tables]
    above = {run.parents[3] for run in runs if len(run.relative_to(folder).parts) > 3}
    found = {root for root in above if any(root in table.parents for table in tables)}
    listings = {path.parent for path in folder.rglob(HASHES)}
    found |= {root for root in listings if any(root in inner.parents for inner in (*runs, *tables))}
    return sorted(root for root in found if found.isdisjoint(root.parents))


def listing_integrity_errors(files: Published) -> list[str]:
    """A line for each listed file that is missing or changed, each that is not listed, and each listing that is missing."""
    out = []
    for name, present in ((HASHES, files.data), (PICTURES, files.pictures)):
        path = files.root / name
        if not path.is_file():
            out.append(f"{path} is missing: restore it, or write it with python -m reproduce.page --results {files.root}")
            continue
        try:
            listed = read_object(path, "listing of published files")
        except InputError as error:
            out.append(str(error))
            continue
        out += [f"{files.root / name} is missing" for name in listed if name not in present]
        out += changed_files(files.root, {name: listed[name] for name in listed if name in present})
        out += [f"{files.root / name} is not listed in {path}" for name in present if name not in listed]
    return out


def run_integrity_errors(files: Published) -> list[str]:
    """A line for each file of a run that its manifest does not list, for each run in another's place, and each in no table."""
    out, used = [], _runs_of_tables(files)
    for run, names in files.runs.items():
        folder = files.root / run
        try:
            manifest = read_manifest(folder)
        except InputError as error:
            out.append(str(error))
            continue
        modality, tier, method, seed = (manifest.get(key, "?") for key in ("modality", "tier", "method", "seed"))
        own = f"{modality}/{tier}/{method}/seed{seed}"
        strange = [name for name in names if name != MANIFEST and name not in manifest["files"]]
        out += [f"{folder / name} is not listed in {folder / MANIFEST}" for name in strange]
        if own != run:
            out.append(f"run {folder} is that of {own} by its manifest; move it there, or delete this copy")
        elif used is not None and run not in used:
            out.append(f"run {folder} is in no table ({SOURCES} of none names it); make its table again, or delete it")
    return out


def _runs_of_tables(files: Published) -> set[str] | None:
    """Runs that tables were made from; None where a table, there or listed, does not say from which."""
    tables = {name for name in files.data if name.endswith(f"/{SOURCES}")}
    try:
        listed = read_object(files.root / HASHES, "listing of published files")
        tables |= {name for name in listed if name.endswith(f"/{SOURCES}")}
        return {run for name in tables for run in read_sources((files.root / name).parent)[1]}
    except InputError:
        return None
