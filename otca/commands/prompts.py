"""``python -m otca prompts``: fetch a published prompt list and check it."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser

from otca.errors import printable
from otca.parser import make_parser, parse


def parser() -> ArgumentParser:
    """Which list, and where to."""
    from otca.published_prompts import LISTS

    out = make_parser("prompts", "Fetch a published prompt list at its pinned commit (this needs the network) and check it.")
    listed = "; ".join(f"{name}: {one.what}" for name, one in LISTS.items())
    out.add_argument("--list", type=str, required=True, help=listed)
    out.add_argument("--out", type=Path, default=Path("prompts"), help="folder to write to (default: prompts)")
    return out


def run(argv: list[str]) -> None:
    """Fetch the list and print its first prompt."""
    from otca.prompts import load_prompts
    from otca.published_prompts import fetch_list

    given = parse(parser(), argv)
    path = fetch_list(given.list, given.out)
    rows = load_prompts(str(path))
    print(f"{path}: {len(rows):,} prompts, checked; the first: {printable(rows[0].text[:100])}")
