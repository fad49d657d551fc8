"""Run folders, ``runs/<modality>/<tier>/<method>[@variant]/seed<k>/``: config.yaml first, rows, manifest.json last."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import yaml

import otca
from otca.config import TrainConfig
from otca.errors import InputError, printable
from otca.files import changed_files, named, read_object, sha256, write_atomic
from otca.parser import check_settings, flat_settings, make_parser, read_settings

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "open_clip_torch", "scipy", "numpy")
CODE = ("otca", "baselines", "eval", "reproduce", "requirements.txt")
"""What makes a run, in this repository."""
RECORDED = ("config.yaml", "train.csv", "validation.csv", "scores.csv.gz", "sets.csv", "probe.csv")
"""Files whose hashes the manifest lists, where they exist."""
CONFIG, MANIFEST = "config.yaml", "manifest.json"
"""Names of the file that begins a run and of the one that ends it."""
FIXED = ("method", "rewards", "sampler.steps", "policy.tuning", "policy.lora_rank")
"""Settings that a run keeps: columns of its rows, and tensors of its checkpoints, depend on them."""
OVERRIDDEN = "overridden.jsonl"
"""File of a run's folder with a line for each change of its config on the way: what changed, and from which iteration."""


@dataclass(frozen=True)
class RunSpec:
    """One run of a table: a method (or ``base``, which trains nothing) with a seed, at a tier of a modality.

    ``variant`` names what ``settings`` (dotted config changes, as (key, value) pairs) make of the method.
    """

    modality: str
    tier: str
    method: str
    seed: int
    variant: str = ""
    settings: tuple[tuple[str, object], ...] = field(default=(), hash=False)  # values may be lists

    @property
    def place(self) -> str:
        return f"{self.modality}/{self.tier}"

    @property
    def name(self) -> str:
        """``method`` or ``method@variant``."""
        return f"{self.method}@{self.variant}" if self.variant else self.method

    @property
    def path(self) -> Path:
        return Path(self.place) / self.name / f"seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.name} seed {self.seed}"


# --------------------------------------------------------------------------------------------------------------- config
def changed_settings(folder: Path, config: TrainConfig, override: bool = False) -> list[str]:
    """What a folder's run had otherwise, as ``key: before → after``; InputError unless ``override`` allows it."""
    if not (folder / CONFIG).exists():
        return []
    changed = differing(read_settings(folder / CONFIG), dataclasses.asdict(config), dataclasses.asdict(TrainConfig()))
    columns = "; ".join(line for line in changed if line.split(":")[0] in FIXED)
    if changed and not override:
        said = f"{folder} holds a run with another config ({'; '.join(changed)}); delete it, use another folder, or say"
        raise InputError(f"{said} --override-config to go on with the new one")
    if columns:
        said = f"--override-config cannot change the columns of train.csv, or what checkpoints hold ({columns})"
        raise InputError(f"{folder}: {said}; use another folder")
    return changed


def begin_run(folder: Path, config: TrainConfig, override: bool = False, iteration: int = 0) -> None:
    """Write config.yaml, or raise InputError for a folder that holds a run with another config.

    With ``override`` the run goes on with the new config from ``iteration``, and `OVERRIDDEN` gains a line that says so.
    """
    path, changed = folder / CONFIG, changed_settings(folder, config, override)
    if changed:
        before = (folder / OVERRIDDEN).read_bytes() if (folder / OVERRIDDEN).exists() else b""
        write_atomic(folder / OVERRIDDEN, before + json.dumps({"iteration": iteration, "changed": changed}).encode() + b"\n")
    if changed or not path.exists():
        write_atomic(path, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def differing(before: Mapping, after: Mapping, defaults: Mapping | None = None) -> list[str]:
    """``key: before → after`` of every difference of two nested settings, keys dotted; what ``before`` lacks had the default."""
    old, new = flat_settings(defaults or {}) | flat_settings(before), flat_settings(after)
    return [f"{key}: {old.get(key)} → {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]


def config_of(run: Path) -> TrainConfig:
    """The config of a run; settings that are newer than the run have their defaults."""
    path = run / CONFIG
    if not path.is_file():
        raise InputError(f"run {run} has no {CONFIG}; give a folder that `python -m otca train` wrote")
    options, content = make_parser("train", ""), read_settings(path)
    options.add_class_arguments(TrainConfig)
    check_settings(content, options, path)
    try:
        return TrainConfig(**options.instantiate(options.parse_object(content)))
    except argparse.ArgumentError as error:
        raise InputError(f"settings {path}: {printable(error)}") from error


# ----------------------------------------------------------------------------------------------------------------- rows
class RowLog:
    """One CSV, one row an iteration, columns fixed by the first row. Rows from ``first_iteration`` on are dropped at start.

    Raises InputError where rows before it are lost, unless ``sparse``: then not every iteration has one.
    """

    def __init__(self, path: Path, first_iteration: int = 0, sparse: bool = False):
        self.path = path
        text = path.read_text(errors="replace") if path.exists() else ""
        head, *rows = text.split("\n")[:-1] or [""]  # a line that was cut short has no end
        numbers = [row.partition(",")[0] for row in rows]
        if bad := [number for number in numbers if not number.isdecimal()]:
            said = f"{path} has a row that begins with {bad[0][:40]!r} and not with an iteration"
            raise InputError(f"{said}; restore the file, or delete the folder to start anew")
        kept = [row for row, number in zip(rows, numbers) if int(number) < first_iteration]
        if not sparse and len(kept) != first_iteration:
            said = f"{path} has rows of {len(kept)} iterations, and the checkpoint is of {first_iteration}"
            raise InputError(f"{said}; restore the file, or delete the folder to start anew")
        self.columns = head.split(",") if kept else []
        if kept:
            write_atomic(path, "\n".join([head, *kept]) + "\n")
        else:
            path.unlink(missing_ok=True)

    def append(self, row: dict[str, float]) -> None:
        """Add a row, its iteration first (numbers only); floats keep nine significant digits."""
        lines = [",".join(f"{v:.9g}" if isinstance(v, float) else str(v) for v in row.values())]
        if not self.columns:
            self.columns = list(row)
            lines.insert(0, ",".join(row))
        if list(row) != self.columns:
            raise ValueError(f"{self.path}: columns changed from {self.columns} to {list(row)}")
        with named(self.path), open(self.path, "a") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint that follows must find it on disk


# ------------------------------------------------------------------------------------------------------------- manifest
@functools.cache
def code_of(root: Path = Path(__file__).parents[1]) -> dict:
    """This software's ``version``; ``commit`` of its checkout, None where it is no checkout or git cannot tell; and whether the
    code was ``changed`` since. The first answer holds for the process, whatever becomes of the checkout."""

    def git(*command: str) -> str:
        there = (root / ".git").exists() and shutil.which("git")  # a copy within another project is not of that project's commit
        return subprocess.run(["git", "-C", root, *command], capture_output=True, text=True).stdout.strip() if there else ""

    changed = bool(git("status", "--porcelain", "--", *CODE))
    return {"version": otca.__version__, "commit": git("rev-parse", "HEAD") or None, "changed": changed}


def finish_run(folder: Path, arm: RunSpec, settings: dict, budget: dict[str, int], protocol: dict) -> dict:
    """Write manifest.json, last of all: what ran, on what, at what cost, with the hash of every row file.

    Its own hash leaves ``code`` out: another commit that makes the same rows has made the same run.
    """
    manifest = {
        "modality": arm.modality,
        "tier": arm.tier,
        "method": arm.name,
        "seed": arm.seed,
        "config_hash": _short_hash(settings),
        "budget": budget,
        "protocol": protocol,
        "libraries": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "files": {name: sha256(folder / name) for name in RECORDED if (folder / name).is_file()},
    }
    manifest |= {"hash": _short_hash(manifest), "code": code_of()}
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _short_hash(content: dict) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a dict's canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def is_finished(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read_manifest(run: Path) -> dict:
    """The manifest of a finished run. Raises InputError, naming the file, where there is none or what is none."""
    content = read_object(run / MANIFEST, "manifest")
    if not (isinstance(content.get("files"), dict) and "hash" in content):
        raise InputError(f"{run / MANIFEST} is no manifest of a run (it lacks hash or files); restore it")
    return content


def integrity_errors(folder: Path) -> list[str]:
    """What is wrong with a finished run: files missing or changed, a config or a manifest edited. Empty where all is whole."""
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        return [str(error)]
    found = _short_hash({key: value for key, value in manifest.items() if key not in ("hash", "code")})
    edited = f"{folder / MANIFEST} was edited: its hash is {found}, not {manifest['hash']}"
    return [edited] * (found != manifest["hash"]) + changed_files(folder, manifest["files"])
