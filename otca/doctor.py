"""Checks of the environment, each with the way out of what is wrong, and of runs and checkpoints below a folder."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from otca.errors import InputError

ROOT = Path(__file__).parents[1]
FREE_GIGABYTES = 5.0
"""Disk space below which a first run at scale may not end."""

Finding = tuple[bool, str, str]
"""Whether all is well, what was found, and the way out where it is not."""


def findings(reward_files: str) -> Iterator[Finding]:
    """Packages, GPUs, disk, the hub's cache, shipped checkpoints, and the files of published rewards."""
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    from otca.files import EMBEDDED, hash_integrity_errors, writable_folder

    yield _packages()
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    said = ", ".join(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)" for gpu in gpus)
    yield True, f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads", ""
    yield True, f"GPUs: {said or 'none; the embedded tasks run on the CPU, the paper tier does not'}", ""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    yield free >= FREE_GIGABYTES, f"{free:.0f} GB free in {Path.cwd()}", f"make room: {FREE_GIGABYTES:g} GB at least"
    try:
        yield True, f"hub cache: {writable_folder(Path(HF_HUB_CACHE))}", ""
    except InputError as error:
        yield False, f"hub cache: {error}", "set HF_HOME to a folder that can be written to"
    for folder in sorted(path for path in EMBEDDED.iterdir() if path.is_dir()):
        wrong, whole = hash_integrity_errors(folder), f"checkpoint embedded:{folder.name} is whole"
        restore = f"git checkout -- {folder}" if (ROOT / ".git").exists() else "install the package again"
        yield not wrong, "; ".join(wrong) or whole, restore
    yield _rewards(reward_files)


def _packages() -> Finding:
    """Of a checkout, the versions that requirements.txt pins; of an installed package, what it says that it needs."""
    pinned = ROOT / "requirements.txt"
    listed = pinned.read_text().splitlines() if pinned.is_file() else requires("otca") or []
    install = f"python -m pip install -r {pinned}" if pinned.is_file() else "python -m pip install --force-reinstall otca"
    needed = [Requirement(line) for line in listed if line.strip() and not line.startswith(("#", "-")) and "extra ==" not in line]
    wrong = []
    for one in needed:
        try:
            found = version(one.name)
        except PackageNotFoundError:
            found = "absent"
        if found == "absent" or not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found}" + (f" (wanted: {one.specifier})" if one.specifier else ""))
    return not wrong, f"packages not as needed: {', '.join(wrong)}" if wrong else f"{len(needed)} packages as needed", install


def _rewards(files: str) -> Finding:
    """Which published rewards could be built here; that one is not is no failure."""
    from otca.rewards.base import REGISTRY, find_reward
    from otca.rewards.published import PublishedReward, located

    published = {name: kind.card for name in REGISTRY if issubclass(kind := find_reward(name), PublishedReward)}
    here = [name for name, card in published.items() if None not in located(card, files).values()]
    absent = ", ".join(name for name in published if name not in here) or "none"
    said = f"published rewards with their files here: {', '.join(here) or 'none'}; without: {absent}"
    return True, f"{said} (python -m otca rewards --fetch NAME)", ""


def check_integrity(folder: Path) -> tuple[list[str], str]:
    """What is damaged of finished runs and checkpoints below a folder, and how many of them there are, in words."""
    from otca.files import HASHES, hash_integrity_errors
    from otca.runs import MANIFEST, integrity_errors

    if not folder.is_dir():
        raise InputError(f"folder {folder} not found; give a run's folder, or one that holds runs")
    runs, checkpoints = (sorted(path.parent for path in folder.rglob(name)) for name in (MANIFEST, HASHES))
    if not (runs or checkpoints):
        raise InputError(f"{folder} holds neither a finished run ({MANIFEST}) nor a checkpoint ({HASHES})")
    found = [line for one in runs for line in integrity_errors(one)]
    found += [line for one in checkpoints for line in hash_integrity_errors(one)]
    return found, f"{len(runs)} runs and {len(checkpoints)} checkpoints"
