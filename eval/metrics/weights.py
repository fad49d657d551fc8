"""Weights of the metrics' networks: local files, told apart by SHA-256."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from otca.errors import InputError
from otca.files import sha256


def digest_of(metric: str, path: Path, source: str) -> str:
    """SHA-256 of a file of weights. Raises InputError, saying where it is had from, where there is no such file."""
    if not path.is_file():
        raise InputError(f"metric {metric!r}: {path} not found; fetch it from {source}")
    return sha256(path)


def check_file(metric: str, path: Path, digests: Sequence[str], source: str) -> str:
    """SHA-256 of a file. Raises InputError unless it is among ``digests``, those of the files that VBench reads."""
    found = digest_of(metric, path, source)
    if found not in digests:
        known = " or ".join(f"{digest[:16]}…" for digest in digests)
        raise InputError(f"metric {metric!r}: {path} has SHA-256 {found[:16]}…, VBench's has {known}; fetch it from {source}")
    return found
