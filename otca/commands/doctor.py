"""``python -m otca doctor``: is this environment fit to run in? What is not comes with its way out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jsonargparse import ArgumentParser

from otca.errors import InputError
from otca.parser import make_parser, parse

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"
PYTHONS = ((3, 11), (3, 13))
"""Oldest and newest that are supported."""
FREE_GIGABYTES = 5.0
"""Disk space below which a first run at scale may not end."""

Finding = tuple[bool, str, str]
"""Whether all is well, what was found, and the way out where it is not."""


def parser() -> ArgumentParser:
    """Nothing to choose but where reward files lie."""
    out = make_parser("doctor", "Check versions, GPU, disk, caches, shipped checkpoints and the files of published rewards.")
    out.add_argument("--reward_files", type=str, default="", help="folder of published rewards' files, FOLDER/<reward>/<file>")
    return out


def run(argv: list[str]) -> None:
    """Print a line a check. Raises InputError where one fails; what is merely absent (a GPU, reward files) is only said."""
    given = parse(parser(), argv)
    failed = 0
    for check in (_python, _packages, _torch, _disk, _hub_cache, _shipped, lambda: _rewards(given.reward_files)):
        for well, what, way_out in check():
            failed += not well
            print(f"{'ok  ' if well else 'FAIL'}  {what}" + (f"\n      {way_out}" if way_out else ""))
    if failed:
        raise InputError(f"{failed} checks failed; the line below each says what to do")


def _python() -> Iterator[Finding]:
    own, (oldest, newest) = sys.version_info[:2], PYTHONS
    names = " to ".join(".".join(map(str, one)) for one in PYTHONS)
    fits = oldest <= own <= newest
    yield (
        fits,
        f"Python {'.'.join(map(str, own))} (supported: {names})",
        "" if fits else f"make the environment with Python {names}",
    )


def _packages() -> Iterator[Finding]:
    pins = [line.strip().partition("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line and line[0] != "#"]
    wrong = []
    for name, _, wanted in pins:
        package = name.partition("[")[0]
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "absent"
        if found.partition("+")[0] != wanted:
            wrong.append(f"{package} {found} (pinned: {wanted})")
    what = f"{len(pins)} packages as pinned" if not wrong else f"packages not as pinned: {', '.join(wrong)}"
    yield not wrong, what, "" if not wrong else "python -m pip install -r requirements.txt"


def _torch() -> Iterator[Finding]:
    import torch

    try:
        value = (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item()
    except RuntimeError as error:
        yield (
            False,
            f"torch does not compute ({error})",
            "reinstall torch for this machine: python -m pip install -r requirements.txt",
        )
        return
    yield value == 8, f"torch {torch.__version__} computes on the CPU, {torch.get_num_threads()} threads", ""
    if not torch.cuda.is_available():
        yield True, "no GPU: the embedded tasks run on the CPU, the paper tier does not", ""
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield True, f"GPU {index}: {facts.name}, {facts.total_memory / 1e9:.0f} GB", ""


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    enough = free >= FREE_GIGABYTES
    yield enough, f"{free:.0f} GB free in {Path.cwd()}", "" if enough else f"make room: {FREE_GIGABYTES:g} GB at least"


def _hub_cache() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from otca.files import writable_folder

    try:
        writable_folder(Path(HF_HUB_CACHE))
    except InputError as error:
        yield False, f"hub cache: {error}", "set HF_HOME to a folder that can be written to"
        return
    yield True, f"hub cache: {HF_HUB_CACHE}", ""


def _shipped() -> Iterator[Finding]:
    from otca.files import EMBEDDED, verify_hashes

    for folder in sorted(path for path in EMBEDDED.iterdir() if path.is_dir()):
        try:
            verify_hashes(folder)
        except InputError as error:
            yield False, str(error), f"git checkout -- {folder}"
            continue
        yield True, f"checkpoint embedded:{folder.name} is whole", ""


def _rewards(files: str) -> Iterator[Finding]:
    """Which published rewards could be built here; that one is not is no failure."""
    from otca.rewards.base import REGISTRY, find_reward
    from otca.rewards.published import PublishedReward, located

    here: dict[bool, list[str]] = {True: [], False: []}
    for name in REGISTRY:
        reward_class = find_reward(name)
        if issubclass(reward_class, PublishedReward):
            here[None not in located(reward_class.card, files).values()].append(name)
    with_files, without = (", ".join(here[whether]) or "none" for whether in (True, False))
    absent = "python -m otca rewards --fetch NAME fetches what you need" if here[False] else ""
    yield True, f"published rewards with their files here: {with_files}; without: {without}", absent
