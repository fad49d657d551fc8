"""Options that are counts, ``--jobs`` above all: how many runs or tasks go side by side."""

from __future__ import annotations

import argparse
import os

import torch

from otca.errors import InputError


def add_jobs(parser: argparse.ArgumentParser, what: str = "runs side by side (default: one a core; one with a GPU)") -> None:
    """The option ``--jobs``; `jobs_of` reads what it was given."""
    parser.add_argument("--jobs", default="", metavar="N", help=what)


def jobs_of(given: str) -> int:
    """What ``--jobs`` was given; left out: one job a usable core, one on a machine with a GPU. Raises as `count_of` does."""
    return count_of("--jobs", given) or (1 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))


def count_of(option: str, given: str) -> int:
    """The number that an option was given, 0 where it was left out (empty). Raises InputError unless it is whole and above 0."""
    if not given:
        return 0
    try:
        count = int(given)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError(f"{option} {given[:20]}: give a number above 0, or leave it out")
    return count
