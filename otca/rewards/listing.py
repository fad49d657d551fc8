"""What `otca rewards` says of every reward: what it takes, and whether its files are here and as published."""

from __future__ import annotations

from otca.rewards.base import find_reward
from otca.rewards.published import DIGITS, Card, PublishedReward, digest, is_other, located

MEDIA = {"image": "images", "video": "videos", "both": "images and videos"}


def described(name: str, files: str) -> str:
    """A paragraph: the name and what it measures, then what it takes, where it comes from, and a line for each file."""
    found = find_reward(name)
    if issubclass(found, PublishedReward):
        facts = found.card
        what, memory, lines = facts.measures, _memory(facts), _files(facts, files)
    else:
        facts, what, memory = found(), (found.__doc__ or "").strip().splitlines()[0], "none, as it has no network"
        lines = [f"files: none, as it comes with this repository (revision {facts.revision})"]
    low, high = facts.range
    takes = f"{MEDIA[facts.modality]}; range: {low:g} to {high:g}; memory: {memory}; licence: {facts.licence}"
    return "\n    ".join([f"{name}: {what}", takes, f"source: {facts.source}", *lines])


def _memory(card: Card) -> str:
    """What the weights take as loaded, on a CPU too if that is more, and the largest file, held while it is read."""
    loaded = f"{card.memory:g} GB on a GPU, {card.memory_cpu:g} GB on a CPU" if card.memory_cpu else f"{card.memory:g} GB"
    return loaded + (f", and {size(max(file.bytes for file in card.files))} more while loading" if card.files else "")


def _files(card: Card, root: str) -> list[str]:
    """A line for each file, with its size, hub id, revision and path, and a last one if some are to be fetched."""
    if card.package:
        return [f"files: in the package (revision {card.revision})"]
    found, lines = located(card, root), []
    for file in card.files:
        path, state = found[file.name], "not here"
        if path and is_other(file, path):
            state = f"{path}, not the published file (SHA-256 {digest(path)[:DIGITS]}…)"
        elif path:
            state = f"{path}, {'as published' if file.sha256 else 'no hash on record'}"
        lines.append(f"{file.name} ({size(file.bytes)}) of {file.repo}@{file.revision}: {state}")
    return lines + [f"fetch with: python -m otca rewards --fetch {card.name}"] * (None in found.values())


def size(count: int) -> str:
    """Bytes for people: three digits or so, and a unit."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{round(count / one, 2):g} {unit}"
    return f"{count} bytes"
