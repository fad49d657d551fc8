"""Errors that end a command with one clear line and exit code 2: they name the thing, the value and the way out."""


class InputError(ValueError):
    """The user gave something that cannot be used."""


class InUse(InputError):
    """Another process works in the folder."""


class RewardError(RuntimeError):
    """A reward failed; the message names the reward, what it returned and for which prompts."""


class TrainingError(RuntimeError):
    """Training cannot go on (no memory, no finite gradient, a lost worker); the message names what to change."""


def at_least(name: str, value: float, least: int) -> None:
    """Raise InputError unless a setting is at least ``least``."""
    if not value >= least:  # nor NaN
        raise InputError(f"{name} is {value}; it must be at least {least}")


def positive(name: str, value: float) -> None:
    """Raise InputError unless a setting is positive."""
    if not value > 0:
        raise InputError(f"{name} is {value}; it must be positive")
