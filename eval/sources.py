"""Which runs a table was made from: ``sources.json`` beside table.csv, written last, and what of it holds no more.

    {"root": "../..", "runs": {"image/quick/otca/seed0": "<hash of its manifest>", …}, "files": {"table.csv": "<SHA-256>", …}}

``root`` leads from the table's folder to where the paths of the runs begin.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from eval.tables import build_table, read_runs, table_csv
from otca.errors import InputError
from otca.files import changed_files, sha256, write_atomic
from otca.runs import RunSpec, integrity_errors, read_manifest

SOURCES = "sources.json"
FILES = ("table.csv", "table.md", "table.tex")
RUN = re.compile(r"(\w[\w.-]*)/(\w[\w.-]*)/(\w[\w.@-]*)/seed(\d+)")
"""Path of a run below the root: modality, tier, method, seed."""


def run_hashes(rows: pd.DataFrame, modality: str, tier: str) -> dict[str, str]:
    """Path of every run that rows (of `eval.tables.collect`) come from, with its manifest's hash, in the rows' order."""
    runs = rows[["method", "seed", "hash"]].drop_duplicates()
    return {
        RunSpec(modality, tier, method, int(seed)).path.as_posix(): digest for method, seed, digest in runs.to_numpy().tolist()
    }


def write_sources(folder: Path, rows_root: Path, runs: Mapping[str, str]) -> None:
    """Say what the table in ``folder`` was made from: runs (path below ``rows_root`` → manifest hash), hashes of its files."""
    root = Path(os.path.relpath(rows_root, folder)).as_posix()
    content = {"root": root, "runs": dict(runs), "files": {name: sha256(folder / name) for name in FILES}}
    write_atomic(folder / SOURCES, json.dumps(content, indent=1) + "\n")


def read_sources(folder: Path) -> tuple[Path, dict[str, str], dict[str, str]]:
    """Root, runs and files that a table's sources.json lists. Raises InputError where it is no such list."""
    path = folder / SOURCES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        root, runs, files = content["root"], dict(content["runs"]), dict(content["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not say what a table was made from ({error!r})") from error
    if not re.fullmatch(r"\.\.(/\.\.)*", str(root)) or sorted(files) != sorted(FILES) or not runs:
        raise InputError(f"{path} does not say what a table was made from: root {root!r}, {len(runs)} runs, files {[*files]}")
    odd = [run for run in runs if not RUN.fullmatch(run)]
    if odd:
        raise InputError(f"{path} lists {odd[0]!r}, which is no modality/tier/method/seedN")
    return Path(os.path.normpath(folder / root)), runs, files


def source_runs(folder: Path) -> list[Path]:
    """Folders of the runs that a table was made from, there or not; none where its list cannot be read."""
    try:
        root, runs, _ = read_sources(folder)
    except InputError:  # `table_integrity_errors` tells
        return []
    return [root / run for run in runs]


def table_integrity_errors(folder: Path) -> list[str]:
    """What is wrong with a table: files missing or changed, runs damaged or replaced, a cell that its rows do not give.

    Cells are computed anew where all runs are whole, and compared with table.csv digit by digit; the first that differs is
    named. A run that is not there is no line: `source_runs` names it to whoever looks, once for all tables. Empty where all is
    as it was written.
    """
    try:
        root, runs, files = read_sources(folder)
    except InputError as error:
        return [str(error)]
    out = changed_files(folder, files)
    lost = [line for run, expected in runs.items() if (root / run).is_dir() for line in _replaced(root / run, expected, folder)]
    if lost or not (folder / "table.csv").is_file() or any(integrity_errors(root / run) for run in runs):
        return out + lost
    return out + _first_difference(folder / "table.csv", root, [*runs])


def _replaced(run: Path, expected: str, folder: Path) -> list[str]:
    try:
        found = read_manifest(run)["hash"]
    except InputError as error:
        return [str(error)]
    return [] if found == expected else [f"run {run} is not the one that {folder} was made from: {found}, not {expected}"]


def _first_difference(path: Path, root: Path, runs: list[str]) -> list[str]:
    """The first cell of table.csv that the rows of these runs do not give."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        again = pd.read_csv(io.StringIO(table_csv(_made_again(table, root, runs))), dtype=str, keep_default_na=False)
    except (OSError, ValueError, KeyError) as error:
        return [f"{path} cannot be made again from its rows ({' '.join(str(error).split())})"]
    if list(table) != list(again) or len(table) != len(again):
        return [
            f"{path} has {len(table)} rows and {len(table.columns)} columns; its rows give {len(again)} and {len(again.columns)}"
        ]
    for said, found in zip(table.to_dict("records"), again.to_dict("records")):
        for column in said:
            if said[column] != found[column]:
                row = " ".join(found[name] for name in ("modality", "method", "metric"))
                return [f"{path}: {column} of {row} is {said[column]!r}; its rows give {found[column]!r}"]
    return []


def _made_again(table: pd.DataFrame, root: Path, runs: list[str]) -> pd.DataFrame:
    """Section by section, in the table's order; where a modality has several, each is of the methods that it names."""
    arms = [
        RunSpec(modality, tier, method, int(seed))
        for modality, tier, method, seed in (RUN.fullmatch(run).groups() for run in runs)
    ]
    media = sorted({arm.modality for arm in arms})
    if sorted(table["modality"].unique()) != media:
        raise InputError(f"it was made from runs of {', '.join(media)}, and has rows of {', '.join(table['modality'].unique())}")
    parts = []
    for (modality, budget), part in table.groupby(["modality", "budget"], sort=False):
        alone = table.loc[table["modality"] == modality, "budget"].nunique() == 1
        rows = read_runs(root, [a for a in arms if a.modality == modality and (alone or a.method in set(part["method"]))])
        parts.append(build_table(rows[rows["metric"].isin(part["metric"])], part["baseline"].iloc[0], budget, modality))
    return pd.concat(parts)
