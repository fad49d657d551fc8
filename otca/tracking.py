"""Rows of a run: a CSV file that survives a resume, and optional live trackers through accelerate."""

from __future__ import annotations

import csv
import importlib.util
import os
import time
from contextlib import contextmanager
from pathlib import Path

from otca.errors import InputError
from otca.files import write_atomic


class RowLog:
    """One CSV, one row an iteration, columns fixed by the first row. Rows from ``first_iteration`` on are dropped at start.

    Raises InputError where rows before it are lost, unless ``sparse``: then not every iteration has one.
    """

    def __init__(self, path: Path, first_iteration: int = 0, sparse: bool = False):
        self.path = path
        self.columns: list[str] | None = None
        kept = self._drop_from(first_iteration) if path.exists() else 0
        if not sparse and kept != first_iteration:
            raise InputError(
                f"{path} has rows of {kept} iterations, and the checkpoint is of {first_iteration}; restore the file, or delete "
                "the folder to start anew"
            )

    def _drop_from(self, first_iteration: int) -> int:
        with open(self.path, newline="") as file:
            reader = csv.DictReader(file)
            rows = [r for r in reader if None not in r and None not in r.values()]  # a line may have been cut short
            kept = [r for r in rows if r["iteration"].isdigit() and int(r["iteration"]) < first_iteration]
            self.columns = list(reader.fieldnames or []) if kept else None
        if kept:
            lines = [",".join(self.columns)] + [",".join(r[c] for c in self.columns) for r in kept]
            write_atomic(self.path, "\n".join(lines) + "\n")
        else:
            self.path.unlink()
        return len(kept)

    def append(self, row: dict[str, float]) -> None:
        """Add a row (numbers only); floats keep nine significant digits."""
        if self.columns is None:
            self.columns = list(row)
            self._write(self.columns, "w")
        if list(row) != self.columns:
            raise ValueError(f"{self.path}: columns changed from {self.columns} to {list(row)}")
        self._write([f"{v:.9g}" if isinstance(v, float) else str(v) for v in row.values()], "a")

    def _write(self, cells: list[str], mode: str) -> None:
        with open(self.path, mode, newline="") as file:
            file.write(",".join(cells) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that follows must find it on disk


def require_trackers(names: list[str]) -> None:
    """Refuse a tracker whose package is absent (accelerate would drop it without a word)."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"trackers: {name} is not installed; run pip install {name} or leave it out")


def flat_settings(config: dict, prefix: str = "") -> dict[str, str]:
    """Dotted keys with plain values, as trackers want them."""
    out = {}
    for key, value in config.items():
        out |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)}
    return out


@contextmanager
def timed(seconds: dict[str, float], name: str):
    """Add the seconds of a with-block to ``seconds[name]``."""
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started
