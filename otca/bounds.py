"""What every setting must be, whatever it sets: each check raises InputError with the setting, its value and the way out."""

from __future__ import annotations

import dataclasses
import math
from numbers import Real

from otca.errors import InputError

MAX_WHOLE = 2**31 - 1
"""Largest whole number that a setting may be."""


def validate_fields(config: object, group: str = "") -> None:
    """`plain` for every field of a dataclass, and every member of its lists; ``group`` is the beginning of their names."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        for part in value if isinstance(value, list) else [value]:
            plain(f"{group}{entry.name}", part)


def plain(name: str, value: object) -> None:
    """Raise InputError for what no setting may be: nothing, no number, a number beyond 32 bits, text with control characters."""
    if value is None:
        raise InputError(f"{name} is empty; give a value, or leave it out")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; it must be a finite number")
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise InputError(f"{name} has {value.bit_length()} binary digits; whole numbers go up to {MAX_WHOLE}")
    if isinstance(value, str) and not value.isprintable():
        found = next(character for character in value if not character.isprintable())
        raise InputError(f"{name} holds {found!r}; control characters and line ends are not allowed")


def at_least(name: str, value: float, least: int) -> None:
    """Raise InputError unless a setting is at least ``least``."""
    if not value >= least:  # nor NaN
        raise InputError(f"{name} is {value}; it must be at least {least}")


def checked_rate(name: str, value: object) -> float:
    """A number of frames a second. Raises InputError for what is no positive, finite number."""
    try:
        rate = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        rate = math.inf
    if not 0 < rate < math.inf:
        raise InputError(f"{name} is {str(value)[:60]}; it must be a positive number of frames a second")
    return rate


def positive(name: str, value: float) -> None:
    """Raise InputError unless a setting is positive."""
    if not value > 0:
        raise InputError(f"{name} is {value}; it must be positive")
