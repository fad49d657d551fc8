"""What a reward measures, under whatever name, so that none is trained on that judges the training."""

from __future__ import annotations

from collections.abc import Sequence

from otca.errors import InputError
from otca.rewards.base import REGISTRY, find_reward, is_remote
from otca.rewards.published import PublishedReward
from otca.rewards.remote import parsed


def measured(name: str) -> set[str]:
    """Names of what a reward measures, however it is named: its own, and those of what it derives from or adds up.

    Of a class only what it says is known, not what it computes. What is no reward of the registry, no class and no address (a
    metric of the evaluation's own) stands for itself.
    """
    if is_remote(name):
        name = parsed(name)[1]
    if name not in REGISTRY and ":" not in name:
        return {name}
    found, out = find_reward(name), set()
    for base in found.__mro__:
        out |= {own for own in [_own_name(base)] if own and ("name" in vars(base) or "card" in vars(base))}
        if f"{base.__module__}:{base.__qualname__}" in REGISTRY.values():
            break
    return {*(out or {name}), *getattr(found, "adds_up", ())}


def column_of(name: str) -> str:
    """The column that a reward fills, as far as its class says."""
    return parsed(name)[1] if is_remote(name) else _own_name(find_reward(name)) or name


def _own_name(kind: type) -> str | None:
    """What a class calls itself; None where it says so only once it is made."""
    own = kind.card.name if issubclass(kind, PublishedReward) and hasattr(kind, "card") else getattr(kind, "name", None)
    return own if isinstance(own, str) else None


def check_trained_metrics(who: object, rewards: Sequence[str], place: str, held_out: Sequence[str]) -> None:
    """Raise InputError where ``who`` would train on what the evaluation of ``place`` holds out, under whatever name."""
    kept = set().union(*map(measured, held_out))
    both = [name for name in rewards if measured(name) & kept]
    if both:
        raise InputError(
            f"{who} trains on {', '.join(both)}, which the evaluation of {place} holds out; change one of them, or say "
            "--allow-trained-metric"
        )
