"""Errors that end a command with one clear line and exit code 2: they name the thing, the value and the way out."""


class InputError(ValueError):
    """The user gave something that cannot be used."""


class RewardError(RuntimeError):
    """A reward failed; the message names the reward, what it returned and for which prompts."""
