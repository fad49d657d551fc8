"""``python -m otca rewards``: every reward of the registry, what it takes, and whether its files are here."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from otca.cli import make_parser, parse
from otca.errors import InputError


def parser() -> ArgumentParser:
    """What to list, or to fetch."""
    out = make_parser(
        "rewards", "List every reward: what it measures, range, licence, memory, files. Fetching needs the network."
    )
    out.add_argument("--fetch", type=str | None, default=None, help="download this reward's files into the hub's cache")
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
        raise InputError(f"reward {given.fetch!r} has no files to fetch; it comes with the packages")
    for name, path in fetch(reward_class.card).items():
        print(f"{name}: {path}")


def _described(name: str, files: str) -> str:
    """A paragraph: the name and what it measures, then one fact a line."""
    from otca.rewards.base import find_reward
    from otca.rewards.published import PublishedReward, located

    reward_class = find_reward(name)
    if not issubclass(reward_class, PublishedReward):
        reward = reward_class()
        lines = [f"range {_range(reward.range)}; licence {reward.licence}; {reward.source}", "files: in the package"]
        return _paragraph(name, (reward_class.__doc__ or "").strip().splitlines()[0], lines)
    card = reward_class.card
    lines = [f"{card.medium}; range {_range(card.range)}; licence {card.licence}; {card.memory:g} GB; {card.source}"]
    found = located(card, files)
    for file in card.files:
        where = found[file.name] or "not here"
        lines.append(f"{file.name} of {file.repo}@{file.revision}, {file.bytes / 1e9:g} GB: {where}")
    if not card.files:
        lines.append("files: in the packages")
    if None in found.values():
        lines.append(f"fetch with: python -m otca rewards --fetch {name}")
    return _paragraph(name, card.measures, lines)


def _paragraph(name: str, what: str, lines: list[str]) -> str:
    return "\n    ".join([f"{name}: {what}", *lines])


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"
