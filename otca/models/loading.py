"""Pipelines from folders and the hub: what is damaged, distilled or not finite is refused before anything is sampled."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from otca.config import PolicyConfig
from otca.errors import InputError, one_line

NETWORKS = ("transformer", "transformer_2")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "connectors")
"""Components of the families' pipelines, as diffusers names them."""

INFERENCE = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Dtype of what is not trained, and of the forward pass, by ``policy.precision``."""

DISTILLED = re.compile(r"turbo|schnell|lightning|distill|meanflow|lcm\b|hyper-?sd", re.IGNORECASE)
"""In the name of a checkpoint that samples in a few steps."""


def component_dtypes(config: PolicyConfig) -> dict[str, torch.dtype]:
    """By component: what is trained whole and the VAE are fp32, the rest ("default") is in inference dtype."""
    whole = dict.fromkeys(NETWORKS, torch.float32) if config.tuning == "full" else {}
    return whole | {"vae": torch.float32, "default": INFERENCE[config.precision]}


def component_class(library: str, name: str) -> type:
    """The class that model_index.json means; ``object`` where the installed library has none of that name."""
    module = library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"
    return getattr(importlib.import_module(module), name, object)


def load_pipeline(loader, folder: str, config: PolicyConfig, without: tuple[str, ...] = ()):
    """The pipeline less some components. Each network is loaded by its own library, which says what did not fit."""
    local, what, dtypes = Path(folder).is_dir(), f"policy.path {config.path}", component_dtypes(config)
    name, index = "model_index.json", {}
    try:
        listed = loader.load_config(folder, local_files_only=local)
        index = {key: kind for key, kind in listed.items() if isinstance(kind, list) and len(kind) == 2}
        parts = {key: None for key in without if key in index}
        for name, kind in index.items():
            if name in parts or not kind[0] or not issubclass(cls := component_class(*kind), nn.Module):
                continue
            options = {"use_safetensors": True, "output_loading_info": True, "local_files_only": local}
            parts[name], info = cls.from_pretrained(folder, subfolder=name, dtype=dtypes.get(name, dtypes["default"]), **options)
            unplaced = sorted(info["unexpected_keys"]) if name in NETWORKS else []
            if differs := misfit(sorted(info["missing_keys"]), unplaced):
                raise InputError(f"{what}: {name} {differs}; it is of another model, or saved within a wrapper")
            check_finite([*parts[name].named_parameters(), *parts[name].named_buffers()], f"{what}: {name}")
        name = "the pipeline"
        return loader.from_pretrained(folder, dtype=dtypes["default"], local_files_only=local, **parts)
    except InputError:
        raise
    except Exception as error:  # the loaders of three libraries raise many kinds
        files = sorted(file for file in Path(folder, "" if name == "the pipeline" else name).rglob("*.*") if file.is_file())
        files = [f"{file} is {said}" for file in files if (said := damage(file))]
        files += [f"{part}/ is missing" for part, kind in index.items() if local and kind[0] and not Path(folder, part).is_dir()]
        raise InputError(f"{what}: {name} cannot be loaded: {'; '.join(files) or one_line(error)}; fetch it again") from error


def check_distilled(config: PolicyConfig, pipeline) -> None:
    """Raise InputError for a checkpoint that was distilled to few steps, unless it is asked for."""
    network = getattr(pipeline, "transformer", None)
    few_steps = pipeline.config.get("is_distilled") or (network is not None and network.config.get("use_meanflow"))
    if (few_steps or DISTILLED.search(config.path)) and not config.distilled:
        why = "is distilled to a few steps, so there is no noise schedule to explore and credit one by one"
        raise InputError(f"policy.path {config.path} {why}; train its base model, or set policy.distilled to use it anyway")


def check_finite(tensors: Iterable[tuple[str, torch.Tensor]], what: str) -> None:
    """Raise InputError naming the first tensor with NaN or Inf."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all():
            raise InputError(f"{what}: {name} is not finite (it has NaN or Inf); fetch or save it again")


def damage(file: Path) -> str:
    """What is wrong with a file of safetensors or JSON, in words; empty where it can be opened, and for other kinds."""
    with open(file, "rb") as opened:
        if opened.read(23) == b"version https://git-lfs":
            return "a git-lfs pointer and not the file itself (run git lfs pull)"
    try:
        if file.suffix == ".json":
            json.loads(file.read_bytes())
        elif file.suffix.lower() == ".safetensors":
            with safe_open(file, "pt"):
                pass
    except (SafetensorError, OSError, ValueError) as error:
        return f"cut or damaged ({one_line(error)})"
    return ""


def misfit(missing: Sequence[str], unplaced: Sequence[str]) -> str:
    """That tensors are missing or have no place in a network, in words: the first of each; empty where all is well."""
    said = [f"lacks {missing[0]}"] if missing else []
    said += [f"has {unplaced[0]}, for which there is no place"] if unplaced else []
    return " and ".join(said)
