"""Rows of a run: a CSV file that survives a resume, and what live trackers of accelerate are given."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from otca.errors import InputError
from otca.files import write_atomic


class RowLog:
    """One CSV, one row an iteration, columns fixed by the first row. Rows from ``first_iteration`` on are dropped at start.

    Raises InputError where rows before it are lost, unless ``sparse``: then not every iteration has one.
    """

    def __init__(self, path: Path, first_iteration: int = 0, sparse: bool = False):
        self.path = path
        text = path.read_text() if path.exists() else ""
        head, *rows = text.split("\n")[:-1] or [""]  # a line that was cut short has no end
        kept = [row for row in rows if int(row.partition(",")[0]) < first_iteration]
        if not sparse and len(kept) != first_iteration:
            raise InputError(
                f"{path} has rows of {len(kept)} iterations, and the checkpoint is of {first_iteration}; restore the file, or "
                "delete the folder to start anew"
            )
        self.columns = head.split(",") if kept else []
        if kept:
            write_atomic(path, "\n".join([head, *kept]) + "\n")
        else:
            path.unlink(missing_ok=True)

    def append(self, row: dict[str, float]) -> None:
        """Add a row, its iteration first (numbers only); floats keep nine significant digits."""
        lines = [",".join(f"{v:.9g}" if isinstance(v, float) else str(v) for v in row.values())]
        if not self.columns:
            self.columns = list(row)
            lines.insert(0, ",".join(row))
        if list(row) != self.columns:
            raise ValueError(f"{self.path}: columns changed from {self.columns} to {list(row)}")
        with open(self.path, "a") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that follows must find it on disk


def require_trackers(names: list[str]) -> None:
    """Raise InputError for a tracker whose package is absent (accelerate would drop it without a word)."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"trackers: {name} is not installed; run pip install {name} or leave it out")


def flat_settings(settings: Mapping, prefix: str = "") -> dict[str, object]:
    """Values of nested settings under dotted keys."""
    out = {}
    for key, value in settings.items():
        out |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out
