"""What a setting may be: bounds that stand in a field's type, and the base of all settings, which checks them once.

A bad value is refused in one line that names the setting, the value and what it must be.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Annotated, get_type_hints

from otca.errors import InputError


@dataclass(frozen=True)
class Bound:
    """What a number must be, and the words for it in a message."""

    holds: Callable[[float], bool]
    words: str


def at_least(least: int) -> Bound:
    return Bound(lambda value: value >= least, f"it must be at least {least}")


POSITIVE = Bound(lambda value: value > 0, "it must be positive")
FRACTION = Bound(lambda value: 0 < value <= 1, "it must lie in (0, 1]")
MIXTURE = Bound(lambda value: 0 <= value <= 1, "it must lie in [0, 1]")
DECAY = Bound(lambda value: 0 <= value < 1, "it must lie in [0, 1)")
GUIDANCE = Bound(lambda value: value == 0 or value >= 1, "use 1 (none) or more, or 0 for the checkpoint's own")
SIZE = Bound(lambda value: value >= 16 and value % 16 == 0, "it must be a positive multiple of 16")
SIZE_OR_OWN = Bound(lambda value: value >= 0 and value % 16 == 0, "use a multiple of 16, or 0 for the policy's own")
RATE = Bound(lambda value: 0 < value < 2**31, "it must be a positive number of frames a second")

Count = Annotated[int, at_least(1)]
Whole = Annotated[int, at_least(0)]
TwoOrMore = Annotated[int, at_least(2)]
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, at_least(0)]


def check_bound(name: str, value: float, bound: Bound) -> None:
    """Raise InputError unless a setting is within its bound."""
    if not bound.holds(value):
        raise InputError(f"{name} is {str(value)[:60]}; {bound.words}")


def check_plain(name: str, value: object) -> None:
    """Raise InputError for what no setting may be: nothing, no finite number, more than 32 bits, control characters."""
    if value is None:
        raise InputError(f"{name} is empty; give a value, or leave it out")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; it must be a finite number")
    if isinstance(value, int) and abs(value) >= 2**31:
        raise InputError(f"{name} has {value.bit_length()} binary digits; whole numbers go up to {2**31 - 1}")
    if isinstance(value, str) and not value.isprintable():
        raise InputError(f"{name} is {value[:60]!r}; control characters and line ends are not allowed")


def checked_rate(name: str, value: object) -> float:
    """A number of frames a second that others state. Raises InputError for what is no positive, finite number."""
    check_bound(name, value if isinstance(value, Real) and not isinstance(value, bool) else math.nan, RATE)
    return float(value)


@dataclass(frozen=True)
class Settings:
    """Base of every group of settings: checks its fields, and takes ~ as the home folder; ``group`` begins their names."""

    group = ""

    def __init_subclass__(cls, group: str = "") -> None:
        cls.group = group

    def __post_init__(self) -> None:
        bounds = _bounds(type(self))
        for entry in dataclasses.fields(self):
            name, value = f"{self.group}{entry.name}", getattr(self, entry.name)
            if isinstance(value, str) and value.startswith("~"):  # no string but a path begins so
                object.__setattr__(self, entry.name, os.path.expanduser(value))
            for part in value if isinstance(value, list) else [value]:
                check_plain(name, part)
            for bound in bounds[entry.name]:
                check_bound(name, value, bound)


@functools.cache
def _bounds(kind: type) -> dict[str, tuple[Bound, ...]]:
    return {name: getattr(hint, "__metadata__", ()) for name, hint in get_type_hints(kind, include_extras=True).items()}
