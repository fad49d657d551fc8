"""Weights of a checkpoint as the ecosystem reads them: a LoRA, a transformer, or a whole pipeline folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from otca.checkpoint import averages, load_weights
from otca.config import PolicyConfig
from otca.errors import InputError
from otca.files import resolve_model
from otca.models.base import Policy, build_policy, family_of
from otca.models.loading import NETWORKS
from otca.models.weights import LORA_FILE
from otca.untrusted import read_object

CARRIED = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Endings of the files of a pipeline that are exported: tensors, settings and vocabularies, nothing that can be executed."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weights that cannot be exported."""

OWN_PATHS = ("_name_or_path", "name_or_path")
"""Keys under which libraries note where on this machine something was loaded from."""


@dataclass(frozen=True)
class Layout:
    """What lies in an exported folder.

    ``networks``: components that were trained; ``lora``: they are LoRAs; ``whole``: the folder is a pipeline of its own;
    ``merged``: a LoRA, and the weights that it was trained on top of, were merged into the network;
    ``averaged``: the weights are the run's average.
    """

    family: str
    networks: tuple[str, ...]
    lora: bool
    whole: bool
    merged: bool
    averaged: bool


def export_weights(checkpoint: Path, config: PolicyConfig, folder: Path, weights: str = "auto") -> Layout:
    """Write the weights of a run's checkpoint into a folder, and around whole networks the rest of a local pipeline.

    ``weights`` as ``eval.weights``: the average where the run keeps one, unless raw ones are asked for.
    A LoRA on top of ``policy.weights`` would be nothing without these: both are merged, and the network is written whole.
    Raises InputError for a pipeline whose other components have pickled weights alone.
    """
    networks = tuple(name for name in NETWORKS if name == NETWORKS[0] or (checkpoint / name).is_dir())
    merged = config.tuning == "lora" and bool(config.weights)
    lora = config.tuning == "lora" and not merged
    base = Path(resolve_model(config.path))
    averaged = averages(weights, (checkpoint / "average.safetensors").is_file(), str(checkpoint))
    if merged or averaged:
        policy = build_policy(config)
        load_weights(checkpoint, policy, weights)
        _merge(policy, networks, folder) if merged else policy.save(folder)
        for file in folder.rglob("config.json"):
            _forget_paths(file)
    else:
        for name in networks:
            part = "" if lora and name == networks[0] else name
            for file in sorted((checkpoint / part).glob(LORA_FILE if lora else "*")):
                _copy(file, folder / part / file.name)
    whole = base.is_dir() and not lora
    if whole:
        _copy_pipeline(base, networks, folder)
    return Layout(family_of(config), networks, lora, whole, merged, averaged)


def _merge(policy: Policy, networks: tuple[str, ...], folder: Path) -> None:
    """Write the networks with the starting weights and the trained LoRA merged into them."""
    policy.pipeline.fuse_lora(components=list(networks))
    policy.pipeline.unload_lora_weights()
    for name in networks:
        getattr(policy.pipeline, name).save_pretrained(folder / name)


def _copy_pipeline(base: Path, networks: tuple[str, ...], folder: Path) -> None:
    """Copy what a pipeline's model_index.json lists, but for the trained networks; and the licence that the folder has."""
    index = read_object(base / "model_index.json", "model index")
    parts = [name for name, value in index.items() if isinstance(value, list) and name.isidentifier() and (base / name).is_dir()]
    for name in (name for name in parts if name not in networks):
        files = [path for path in sorted((base / name).rglob("*")) if path.is_file()]
        if any(f.suffix in PICKLED for f in files) and not any(f.suffix == ".safetensors" for f in files):
            raise InputError(f"{base / name} has pickled weights alone; save the pipeline with safetensors, then export again")
        for file in (file for file in files if file.suffix in CARRIED):
            _copy(file, folder / file.relative_to(base))
    for file in (base / "model_index.json", base / "otca.json"):
        if file.is_file():
            _copy(file, folder / file.name)
    for file in sorted(base.glob("LICENSE*")):
        _copy(file, folder / f"BASE-{file.name}")


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)
    if target.name.endswith(("config.json", "index.json")):
        _forget_paths(target)


def _forget_paths(file: Path) -> None:
    """Take out of a settings file where on this machine its model lay."""
    content = read_object(file, "settings")
    kept = {key: value for key, value in content.items() if key not in OWN_PATHS}
    if kept != content:
        file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
