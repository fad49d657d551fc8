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
        _, own, _ = parsed(name)
        return measured(own) if own in REGISTRY else {own}
    if name not in REGISTRY and ":" not in name:
        return {name}
    found = find_reward(name)
    return {*(_own_names(found) or {name}), *getattr(found, "adds_up", ())}


def column_of(name: str) -> str:
    """The column that a reward fills, as far as its class says."""
    if is_remote(name):
        return parsed(name)[1]
    found = find_reward(name)
    own = found.card.name if issubclass(found, PublishedReward) else getattr(found, "name", None)
    return own if isinstance(own, str) else name


def _own_names(found: type) -> set[str]:
    """What a class and its bases call themselves, up to the first that the registry has."""
    out = set()
    for base in found.__mro__:
        own = base.card.name if issubclass(base, PublishedReward) and "card" in vars(base) else vars(base).get("name")
        if isinstance(own, str):
            out.add(own)
        if f"{base.__module__}:{base.__qualname__}" in REGISTRY.values():
            break
    return out


def check_trained_metrics(who: object, rewards: Sequence[str], place: str, held_out: Sequence[str]) -> None:
    """Raise InputError where ``who`` would train on what the evaluation of ``place`` holds out, under whatever name."""
    kept = set().union(*map(measured, held_out))
    both = [name for name in rewards if measured(name) & kept]
    if both:
        raise InputError(
            f"{who} trains on {', '.join(both)}, which the evaluation of {place} holds out; change one of them, or say "
            "--allow-trained-metric"
        )
