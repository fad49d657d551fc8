"""Pipelines from folders and the hub: what is damaged, distilled or not finite is refused before anything is sampled."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from otca.config import PolicyConfig
from otca.errors import InputError, one_line
from otca.untrusted import read_json, read_object

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


def load_pipeline(loader, folder: str, config: PolicyConfig, without: tuple[str, ...] = ()):
    """The pipeline less some components. Raises InputError naming the component and file that cannot be used."""
    local, what = Path(folder).is_dir(), f"policy.path {config.path}"
    if local:
        _check_folder(Path(folder), what, without)
    try:
        present = loader.load_config(folder, local_files_only=local)
        left_out = {name: None for name in without if name in present}
        pipeline = loader.from_pretrained(folder, dtype=component_dtypes(config), local_files_only=local, **left_out)
    except Exception as error:  # the loaders of three libraries raise many kinds
        raise InputError(f"{what} cannot be loaded ({one_line(error)}); fetch it again") from error
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            check_finite([*part.named_parameters(), *part.named_buffers()], f"{what}: {name}")
    return pipeline


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


def tensor_shapes(file: Path, what: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of the tensors in a safetensors file. Raises InputError for a file that is cut, or only a pointer to one."""
    with open(file, "rb") as opened:
        if opened.read(23) == b"version https://git-lfs":
            raise InputError(f"{what}: {file} is a git-lfs pointer and not the file itself; run git lfs pull")
    try:
        with safe_open(file, "pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{what}: {file} is cut or damaged ({one_line(error)}); fetch it again") from error


def misfit(own: Mapping, given: Mapping) -> str:
    """How tensors (or shapes) differ from a network's: the first missing, the first unplaced, or the first of another shape."""
    own, given = ({key: tuple(getattr(v, "shape", v)) for key, v in held.items()} for held in (own, given))
    missing, unplaced = (next((key for key in a if key not in b), "") for a, b in ((own, given), (given, own)))
    if missing or unplaced:
        said = [f"lacks {missing}" if missing else "", f"has {unplaced}, for which there is no place" if unplaced else ""]
        return " and ".join(filter(None, said))
    other = next((key for key in own if own[key] != given[key]), None)
    return f"has {other} of shape {given[other]} where {own[other]} is needed" if other else ""


def weight_files(folder: Path, what: str) -> list[Path]:
    """The safetensors files of one component, without variants. Raises InputError where one or all are missing."""
    for index in folder.glob("*.safetensors.index.json"):
        shards = sorted(set(read_object(index, what).get("weight_map", {}).values()))
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent:
            raise InputError(f"{what}: {folder / absent[0]}, which {index.name} names, is missing; fetch it")
        if "fp16" not in index.name:
            return [folder / name for name in shards]
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if file.name.count(".") == 1]
    if plain:
        return plain
    if files:
        raise InputError(f"{what}: {files[0]} is a variant alone; fetch the weights without one, or rename it to have none")
    there = ", ".join(file.name for file in sorted(folder.iterdir()) if file.suffix in (".bin", ".pt", ".ckpt"))
    pickled = f" but {there}, which could run code" if there else ""
    raise InputError(f"{what}: no safetensors file in {folder}{pickled}; fetch the weights as safetensors")


def _check_folder(folder: Path, what: str, without: tuple[str, ...]) -> None:
    """Look at every component's files before a byte of the weights is loaded."""
    import diffusers

    for name, kind in read_object(folder / "model_index.json", what).items():
        if name in without or not (isinstance(kind, list) and len(kind) == 2 and kind[0]):
            continue
        part, named = folder / name, f"{what}: {name}"
        if not part.is_dir():
            raise InputError(f"{named} is named in model_index.json, but {part} is missing; fetch it")
        for file in sorted(part.glob("*.json")):
            read_json(file, named)
        if not (part / "config.json").is_file():
            if (component := getattr(diffusers, kind[1], None)) and issubclass(component, nn.Module):
                raise InputError(f"{named}: {part / 'config.json'} is missing; fetch it")
            continue
        files = weight_files(part, named)
        shapes = {key: shape for file in files for key, shape in tensor_shapes(file, named).items()}
        if name in NETWORKS and (loader := getattr(diffusers, kind[1], None)) is not None:
            with torch.device("meta"):
                network = loader.from_config(loader.load_config(part, local_files_only=True))
            if differs := misfit(network.state_dict(), shapes):
                raise InputError(f"{named}: {files[0]} {differs}; it is of another model, or saved within a wrapper")
