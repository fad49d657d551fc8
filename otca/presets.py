"""Named settings: what ``modality/tier`` changes of the defaults, a commented YAML file each, below otca/configs.

A file has ``train``, ``eval``, ``tuned`` (method → what it has of its own) and ``recipe`` (where it is launched), each upon those
of its ``base`` files. Precedence, lowest first: the dataclass default, the preset, the method's own settings, what was tuned for
it, a YAML file, the command line. Values for published models bear a mark, as in otca/DEVIATIONS.md: [paper], [reader],
[sibling: whose] or [ours].
"""

from __future__ import annotations

from pathlib import Path

from otca.config import EvalConfig, TrainConfig
from otca.errors import InputError, nearest
from otca.parser import read_settings

CONFIGS = Path(__file__).parent / "configs"
BASES = CONFIGS / "base"

Sections = dict[str, dict[str, object]]


def _read(path: Path) -> Sections:
    """The sections of a file, upon those of its bases."""
    own, merged = read_settings(path), {"train": {}, "eval": {}, "tuned": {}, "recipe": {}}
    for sections in (*(_read(BASES / f"{name}.yaml") for name in own.pop("base", [])), own):
        for name, settings in sections.items():
            merged[name] = merged[name] | settings
    return merged


_FILES = {f"{path.parent.name}/{path.stem}": _read(path) for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent != BASES}
TRAIN = {name: sections["train"] for name, sections in _FILES.items()}
EVAL = {name: sections["eval"] for name, sections in _FILES.items() if sections["eval"]}
TUNED = {name: sections["tuned"] for name, sections in _FILES.items()}
RECIPES = {name: sections["recipe"] for name, sections in _FILES.items() if sections["recipe"]}

SEEDS = {"quick": 2, "cpu": 10, "paper": 1}
"""Paired seeds of the headline arms, fixed before any run."""
FEWER_SEEDS = {"cpu": {"core": 5, "wide": 3}}
"""Seeds of the other arms of Tables 1 to 4, and of the ablations' further arms, where they are fewer."""


def preset(name: str) -> dict[str, object]:
    """Dotted training settings of ``modality/tier``."""
    return _find(TRAIN, name)


def eval_config(name: str) -> EvalConfig:
    """Evaluation settings of ``modality/tier``."""
    return EvalConfig(**_find(EVAL, name))


def train_config(name: str, method_name: str, changes: dict[str, object], seed: int) -> TrainConfig:
    """The config of one run of a tier, with changes."""
    return TrainConfig.from_dotted(_find(TRAIN, name) | changes | {"method": method_name, "seed": seed})


def tuned(name: str, method_name: str) -> dict[str, object]:
    """What was chosen for a method at a preset; nothing where all methods share the preset's settings."""
    return TUNED.get(name, {}).get(method_name, {})


def _find(table: Sections, name: str) -> dict[str, object]:
    if name not in table:
        raise InputError(f"unknown preset {name!r}{nearest(name, table)} (known: {', '.join(table)})")
    return table[name]
