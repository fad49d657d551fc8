"""``otca score``: media of any system, against a list of prompts."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from otca.parser import make_parser, parse


def parser() -> ArgumentParser:
    """What to score, by what."""
    from eval.score import ScoreConfig

    out = make_parser("score", "Score images or videos of any system: a row an item, means with intervals; call again to resume.")
    out.add_class_arguments(ScoreConfig)
    return out


def run(argv: list[str]) -> None:
    """Score, write the rows, print means with intervals."""
    from eval.score import ScoreConfig, score

    given = parse(parser(), argv)
    score(ScoreConfig(**{name: given[name] for name in ScoreConfig.__dataclass_fields__}))
