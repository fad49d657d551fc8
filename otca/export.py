"""Trained weights as the ecosystem reads them: a LoRA, a transformer, or a whole pipeline folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from otca.errors import InputError
from otca.files import read_object
from otca.models.pipeline import Policy

CARRIED = (".safetensors", ".json", ".txt", ".model", ".jinja")
"""Endings of the files of a pipeline that are exported: tensors, settings and vocabularies, nothing that can be executed."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of weights that cannot be exported."""
OWN_PATHS = ("_name_or_path", "name_or_path")
"""Keys under which libraries note where on this machine something was loaded from."""


def export_weights(policy: Policy, folder: Path) -> tuple[bool, bool]:
    """Write a policy's weights, and around whole networks the rest of its pipeline, where that lies on this machine.

    A LoRA on top of ``policy.weights`` would be nothing without these: both are merged, and the network is written whole.
    Returns whether the folder holds a LoRA, and whether it is a pipeline of its own. Raises InputError for a pipeline whose other
    components have pickled weights alone.
    """
    base, lora = Path(policy.folder), policy.config.tuning == "lora" and not policy.config.weights
    if policy.config.tuning == "lora" and not lora:
        policy.pipeline.fuse_lora(components=policy.trained)
        policy.pipeline.unload_lora_weights()
        for name in policy.trained:
            getattr(policy.pipeline, name).save_pretrained(folder / name)
    else:
        policy.save(folder)
    whole = base.is_dir() and not lora
    if whole:
        _copy_pipeline(base, policy.trained, folder)
    for file in (*folder.rglob("*config.json"), *folder.glob("model_index.json")):
        content = read_object(file, "settings")
        if not content.keys().isdisjoint(OWN_PATHS):
            kept = {key: value for key, value in content.items() if key not in OWN_PATHS}
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return lora, whole


def _copy_pipeline(base: Path, trained: list[str], folder: Path) -> None:
    """Copy what a pipeline's model_index.json lists, but for the trained networks; and the licence that the folder has."""
    files = {file: file.name for file in (base / "model_index.json", base / "otca.json") if file.is_file()}
    files |= {file: f"BASE-{file.name}" for file in sorted(base.glob("LICENSE*"))}
    for name, value in read_object(base / "model_index.json", "model index").items():
        if not isinstance(value, list) or not name.isidentifier() or name in trained:
            continue
        own = [path for path in sorted((base / name).rglob("*")) if path.is_file()]
        endings = {path.suffix for path in own}
        if not endings.isdisjoint(PICKLED) and ".safetensors" not in endings:
            raise InputError(f"{base / name} has pickled weights alone; save the pipeline with safetensors, then export again")
        files |= {path: path.relative_to(base).as_posix() for path in own if path.suffix in CARRIED}
    for file, target in files.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / target)
