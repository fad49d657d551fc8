"""Weights of the metrics' networks: local files, told apart by SHA-256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from otca.errors import InputError
from otca.files import sha256


def digest_of(metric: str, path: Path, source: str) -> str:
    """SHA-256 of a file of weights. Raises InputError, saying where it is had from, where there is no such file."""
    if not path.is_file():
        raise InputError(f"metric {metric!r}: {path} not found; fetch it from {source}")
    return sha256(path)


@dataclass(frozen=True)
class VBenchFile:
    """The very file that VBench reads: its SHA-256, and where it is had from."""

    sha256: str
    source: str

    def column(self, metric: str, path: Path, other: str = "") -> tuple[str, str]:
        """The column that a file fills, and its SHA-256: ``metric`` if it is this one, else ``other``; refused if that is ""."""
        found = digest_of(metric, path, self.source)
        if found != self.sha256 and not other:
            said = f"{path} has SHA-256 {found[:16]}…, VBench's has {self.sha256[:16]}…"
            raise InputError(f"metric {metric!r}: {said}; fetch it from {self.source}")
        return metric if found == self.sha256 else other, found
