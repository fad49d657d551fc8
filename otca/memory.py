"""Memory: bytes of tensors; running out of it said in one line, with what was being done and the settings that need less."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from otca.errors import TrainingError

SAID_BY_CPU = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
"""How torch's allocators on the CPU say it, in a plain RuntimeError."""


def byte_count(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that the numbers of tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def memory_named(doing: str, lower: str) -> Iterator[None]:
    """Raise TrainingError where memory runs out inside: ``doing`` says what was done, ``lower`` which settings to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        out = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in SAID_BY_CPU)
        if not out:
            raise
        raise TrainingError(f"out of memory {doing}: lower {lower} ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
