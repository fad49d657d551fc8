"""Errors that end a command with one clear line and exit code 2: they name the thing, the value and the way out."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

MAX_LINE = 2000
"""Characters of a message."""


class InputError(ValueError):
    """The user gave something that cannot be used."""


class InUse(InputError):
    """Another process works in the folder."""


class RewardError(RuntimeError):
    """A reward failed; the message names the reward, what it returned and for which prompts."""


class TrainingError(RuntimeError):
    """Training cannot go on (no memory, no finite gradient, a lost worker); the message names what to change."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint for a message about an unknown name: the known one that is most like it; empty where none is like it enough."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def printable(text: object) -> str:
    """One line of `MAX_LINE` characters at most, with escapes for control characters and lone surrogates."""
    line = " ".join(str(text)[: 2 * MAX_LINE].split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= MAX_LINE else f"{line[: MAX_LINE - 1]}…"


def one_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing, for a place in a message of one line."""
    return f"it lacks {error}" if isinstance(error, KeyError) else printable(error)[:160] or type(error).__name__


@contextmanager
def memory_named(doing: str, lower: str) -> Iterator[None]:
    """Raise TrainingError where memory runs out inside: ``doing`` says what was done, ``lower`` which settings to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        full = ("out of memory", "not enough memory", "allocate memory")  # how torch says it, on the CPU in a plain RuntimeError
        if isinstance(error, MemoryError) or any(words in str(error) for words in full):
            raise TrainingError(f"out of memory {doing}: lower {lower} ({one_line(error)})") from error
        raise
