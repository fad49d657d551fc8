"""``python -m otca rewards``: every reward of the registry, what it takes, and whether its files are here and as published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser

from otca.errors import InputError
from otca.parser import make_parser, parse

if TYPE_CHECKING:
    from otca.rewards.published import Card

MEDIA = {"image": "images", "video": "videos", "both": "images and videos"}


def parser() -> ArgumentParser:
    """What to list, or to fetch."""
    out = make_parser(
        "rewards", "List every reward: what it measures, range, licence, memory, files. Fetching needs the network."
    )
    out.add_argument(
        "--fetch", type=str | None, default=None, help="download this reward's files into the hub's cache, and check their hashes"
    )
    out.add_argument("--reward_files", type=str, default="", help="folder of published rewards' files, FOLDER/<reward>/<file>")
    return out


def run(argv: list[str]) -> None:
    """Fetch, or list."""
    from otca.rewards.base import REGISTRY, find_reward
    from otca.rewards.published import PublishedReward, fetch

    given = parse(parser(), argv)
    if given.fetch is None:
        print("\n\n".join(_described(name, given.reward_files) for name in REGISTRY))
        return
    reward_class = find_reward(given.fetch)
    if not issubclass(reward_class, PublishedReward) or not reward_class.card.files:
        raise InputError(f"reward {given.fetch!r} has no files to fetch; `python -m otca rewards` names those that have")
    card = reward_class.card
    for file, path in zip(card.files, fetch(card).values()):
        print(f"{file.name}: {path} ({'as published' if file.sha256 else 'no hash on record'})")


def _described(name: str, files: str) -> str:
    """A paragraph: the name and what it measures, then what it takes, where it comes from, and a line for each file."""
    from otca.rewards.base import find_reward
    from otca.rewards.published import PublishedReward

    found = find_reward(name)
    published = issubclass(found, PublishedReward)
    facts = found.card if published else found()
    what = found.card.measures if published else (found.__doc__ or "").strip().splitlines()[0]
    memory = _memory(found.card) if published else "none, as it has no network"
    lines = [
        f"{MEDIA[facts.modality]}; range: {facts.range[0]:g} to {facts.range[1]:g}; memory: {memory}; licence: {facts.licence}",
        f"source: {facts.source}",
        *(
            _files(found.card, files)
            if published
            else [f"files: none, as it comes with this repository (revision {facts.revision})"]
        ),
    ]
    return "\n    ".join([f"{name}: {what}", *lines])


def _memory(card: Card) -> str:
    """What the weights take as loaded, on a CPU too if that is more, and the largest file, held while it is read."""
    loaded = f"{card.memory:g} GB on a GPU, {card.memory_cpu:g} GB on a CPU" if card.memory_cpu else f"{card.memory:g} GB"
    return loaded + (f", and {size(max(file.bytes for file in card.files))} more while loading" if card.files else "")


def _files(card: Card, root: str) -> list[str]:
    """A line for each file, with its size, hub id, revision and path, and a last one if some are to be fetched."""
    from otca.rewards.published import DIGITS, located, other_files

    if card.package:
        return [f"files: in the package (revision {card.revision})"]
    found = located(card, root)
    others = other_files(card, {name: path for name, path in found.items() if path})
    lines = []
    for file in card.files:
        known = f"not the published file (SHA-256 {others[file.name][:DIGITS]}…)" if file.name in others else "as published"
        state = f"{found[file.name]}, {known if file.sha256 else 'no hash on record'}" if found[file.name] else "not here"
        lines.append(f"{file.name} ({size(file.bytes)}) of {file.repo}@{file.revision}: {state}")
    return lines + [f"fetch with: python -m otca rewards --fetch {card.name}"] * (None in found.values())


def size(count: int) -> str:
    """Bytes for people: three digits or so, and a unit."""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= one:
            return f"{round(count / one, 2):g} {unit}"
    return f"{count} bytes"
