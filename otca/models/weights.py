"""Weights of this and other trainers onto a pipeline: LoRAs are merged, whole networks replaced; all tensors find a place."""

from __future__ import annotations

import json
import logging
import math
import re
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from otca.errors import InputError, one_line
from otca.files import parse_json, read_object
from otca.models.loading import check_finite, damage, misfit

log = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Name under which diffusers looks for a LoRA in a folder."""
MARKS = (LORA_FILE, "adapter_model.safetensors", "config.json")
"""Files by which a folder holds a LoRA of diffusers', one of peft's, or a network."""

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "transformer.", "transformer_2.", "diffusion_model.")
"""What data parallelism, compilation, peft and pipelines put before the names of a network's tensors."""

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
HALF = re.compile(r"(.+)\.(?:lora_([AB])(?:\.\w+)?|lora(?:_linear_layer)?[._](down|up))\.weight|(.+)\.alpha")
"""Module and half of a LoRA's tensor, A or down (r, in), B or up (out, r); or module alone, of its alpha."""
OTHER_ADAPTERS = re.compile(r"[._](lokr_|hada_|b?oft_|dora_scale|lora_magnitude_vector|vera_lambda)")
"""In the names of tensors of LyCORIS's and peft's other kinds."""

Tensors = dict[str, torch.Tensor]
Pairs = dict[tuple[str, str], Tensors]
"""(Component, module) → "A", "B" and, where the file has it, "alpha"."""


def apply_weights(pipeline, names: list[str], path: str) -> None:
    """Start from what this or another trainer made of the model: merge a LoRA (W + alpha/r·B·A), or replace the trained networks.

    ``path`` is a safetensors file, a folder or a hub id (or ``owner/name/file``): a LoRA as diffusers or peft saves it (Flow-GRPO
    has it in ``lora/``, DanceGRPO its alpha beside it), a network with its ``config.json``, or one folder a network
    (``transformer/``, so full runs here). Raises InputError naming file, first tensor without a place and first that is missing.
    """
    place = _locate(path)
    found = {name: _weights_of(place, name, names) for name in names}
    absent = [name for name, files in found.items() if not files]
    if absent:
        said = f"nothing for {absent[0]} there; each network needs its own, in {absent[0]}/"
        if len(absent) == len(names):
            said = f"no {LORA_FILE}, adapter_config.json, config.json or {names[0]}/ there"
            if len(names) > 1 and (place.is_file() or any(place.glob("*.safetensors"))):
                said = f"one network, but the model has {', '.join(names)}; give each its own in a folder of its name"
        raise InputError(f"policy.weights {path}: {said}")
    for name, files in found.items():
        what, tensors = f"policy.weights {files[0]}", {}
        for file in files:
            if said := damage(file):
                raise InputError(f"policy.weights {file}: it is {said}; fetch it again")
            loaded = load_file(file)
            if twice := next(iter(tensors.keys() & loaded.keys()), None):
                raise InputError(f"{what}: {file.name} beside it has {twice} as well, so one of them is too much; remove it")
            tensors |= loaded
        check_finite(tensors.items(), what)
        if other := next(filter(OTHER_ADAPTERS.search, tensors), None):
            raise InputError(f"{what}: {other} is of a LoKr, LoHa, OFT, DoRA or VeRA, which is not supported; merge it first")
        if whole := [key for key, value in tensors.items() if value.ndim and not value.is_floating_point()]:
            said = f"{whole[0]} is quantised, or no weight ({tensors[whole[0]].dtype})"
            raise InputError(f"{what}: {said}; save the weights in floating point")
        if getattr(pipeline, "transformer_2", None) is None and any(key.startswith("transformer_2.") for key in tensors):
            raise InputError(f"{what}: it has weights of transformer_2, and the model has one network; give transformer's own")
        if any("lora" in key for key in tensors):
            _merge_lora(pipeline, name, tensors, files[0], what)
        else:
            _replace(getattr(pipeline, name), tensors, files[0].parent, what)


def _locate(path: str) -> Path:
    """The file or folder, fetched from the hub where it is none here."""
    place = Path(path)
    if place.exists():
        return place
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    if not name or path.startswith((".", "/")):
        raise InputError(f"policy.weights {path}: no such file or folder; give one, or a hub id as owner/name")
    from huggingface_hub import snapshot_download

    try:
        patterns = [file] if file else ["*.safetensors", "*.json"]
        return Path(snapshot_download(f"{owner}/{name}", allow_patterns=patterns)) / file
    except Exception as error:  # no such repository, no network, nothing in the cache
        raise InputError(f"policy.weights {path}: neither here nor on the hub ({one_line(error)})") from error


def _weights_of(place: Path, name: str, names: list[str]) -> list[Path]:
    """The safetensors files of one network: its own folder's, or, where it is the only one, those of the place itself."""
    if place.is_file():
        if place.suffix.lower() != ".safetensors":
            raise InputError(f"policy.weights {place}: only safetensors are read, since other files could run code")
        return [place] if len(names) == 1 else []
    alone = len(names) == 1 or (name == names[0] and (place / LORA_FILE).is_file())
    places = (place / "lora", place / name, place) if alone else (place / name,)
    held = [own for own in places if any((own / mark).is_file() for mark in MARKS) and any(own.glob("*.safetensors"))]
    if len(held) > 1:
        raise InputError(f"policy.weights {place}: weights lie in {held[0]} and in {held[1]}; give the path of one")
    return next((files for own in places if own.is_dir() and (files := _files_in(own))), [])


def _files_in(folder: Path) -> list[Path]:
    """A LoRA's file, all that a network's config.json goes with (variants left out), or the only file."""
    loras = [folder / mark for mark in MARKS[:2] if (folder / mark).is_file()]
    files, whole = loras or sorted(folder.glob("*.safetensors")), not loras and (folder / "config.json").is_file()
    files = [file for file in files if file.name.count(".") == 1] if whole else files
    if not files and (whole or (folder / "adapter_config.json").is_file()):
        raise InputError(f"policy.weights {folder}: no safetensors file there but of a variant; save the weights as safetensors")
    if len(files) > 1 and not whole:
        raise InputError(f"policy.weights {folder}: it has {', '.join(file.name for file in files)}; give the path of one")
    return files


def unwrapped(key: str) -> str:
    """A tensor's name without the `WRAPPERS` before it."""
    while start := next((wrapper for wrapper in WRAPPERS if key.startswith(wrapper)), ""):
        key = key.removeprefix(start)
    return key


def _replace(network: nn.Module, tensors: Tensors, folder: Path, what: str) -> None:
    """Other weights into a network, in its own precision."""
    if (folder / "config.json").is_file():
        for key, value in read_object(folder / "config.json", what).items():
            if not key.startswith("_") and json.dumps(own := network.config.get(key, value)) != json.dumps(value):
                raise InputError(f"{what}: of another model: {key} is {value}, but that of policy.path {own}")
    plain = {unwrapped(key): value for key, value in tensors.items()}
    if len(plain) < len(tensors):
        raise InputError(f"{what}: it has tensors under two names, with a wrapper and without; save one network")
    try:
        keys = network.load_state_dict(plain, strict=False)
    except RuntimeError as error:  # of sizes
        raise InputError(f"{what}: of another model than policy.path ({one_line(error)})") from error
    if differs := misfit(*keys):
        raise InputError(f"{what} {differs}; it is of another model than policy.path")


# --------------------------------------------------------------------------------------------------------------- LoRAs


def _merge_lora(pipeline, name: str, tensors: Tensors, file: Path, what: str) -> None:
    """Add alpha/r·B·A to every module of the network, and of the text encoders, that the LoRA adapts."""
    settings = {part: _settings(file, part) for part in (name, *ENCODERS)}
    pairs, unplaced = _pairs(pipeline, name, tensors, what)
    if unplaced:  # names of other trainers, as far as diffusers knows them
        converted, still = _pairs(pipeline, name, _converted(pipeline, tensors), what)
        if converted and not still:
            pairs, unplaced = converted, []
    missing = [f"{module}.lora_{half}.weight" for (_, module), parts in pairs.items() for half in "AB" if half not in parts]
    asked = _targets(getattr(pipeline, name), settings[name], what)
    missing += [f"{module}.lora_A.weight" for module in asked if (name, module) not in pairs]
    if differs := misfit(missing, unplaced):
        raise InputError(f"{what} {differs} in {name} ({len(missing) + len(unplaced)} such tensors); is it of this model?")
    if any(settings[part].get("lora_alpha") is None and "alpha" not in parts for (part, _), parts in pairs.items()):
        log.warning("%s records no alpha; it is taken to be the rank, as diffusers does", file)
    factors = []  # of all, checked before a weight moves; their products, as large as the network, are made one by one
    for (component, module), parts in pairs.items():
        weight = getattr(pipeline, component).get_submodule(module).weight
        down, up = (torch.atleast_2d(parts[half].float()).flatten(1) for half in "AB")
        if (len(up), down.shape[1], up.shape[1]) != (len(weight), weight[0].numel(), len(down)) or not len(down):
            control = "; a control LoRA, which takes an image as input, cannot be used" if "x_embedder" in module else ""
            said = f"A {tuple(down.shape)} and B {tuple(up.shape)} do not fit the weight {tuple(weight.shape)}{control}"
            raise InputError(f"{what}: {module}: {said}")
        factors.append((weight, _scale(settings[component], module, len(down), parts.get("alpha"), what), up, down))
    for weight, scale, up, down in factors:
        weight.data.copy_(weight.data.float() + (scale * (up @ down)).view_as(weight).to(weight.device))


def _pairs(pipeline, name: str, tensors: Tensors, what: str) -> tuple[Pairs, list[str]]:
    """Tensors by the module that they adapt, and the keys of those that no module of the pipeline takes."""
    pairs, unplaced = {}, []
    for key, value in tensors.items():
        encoder = next((part for part in ENCODERS if key.startswith(f"{part}.")), "")
        inner, network = key.removeprefix(f"{encoder}.") if encoder else unwrapped(key), getattr(pipeline, encoder or name, None)
        if network is None:
            raise InputError(f"{what}: a part of the LoRA is for {encoder} ({key}), which is not loaded here; merge it first")
        match = HALF.fullmatch(inner)
        module = (match[1] or match[4]) if match else ""
        placed = next((own for own in (module, module.removeprefix("text_model.")) if own and _has_weight(network, own)), None)
        if placed:
            half = match[2] or {"down": "A", "up": "B"}.get(match[3], "alpha")
            parts = pairs.setdefault((encoder or name, placed), {})
            if half in parts:
                said = f"{key} is the second {half} of {placed}; it holds two adapters, or two networks"
                raise InputError(f"{what}: {said}: save one")
            parts[half] = value
        else:
            unplaced.append(key)
    return pairs, unplaced


def _has_weight(network: nn.Module, module: str) -> bool:
    try:
        return isinstance(getattr(network.get_submodule(module), "weight", None), torch.Tensor)
    except AttributeError:
        return False


def _converted(pipeline, tensors: Tensors) -> Tensors:
    """The tensors as diffusers names them; what its converters leave out keeps its name, and is found to have no place."""

    def convert(some: Tensors) -> Tensors:
        try:
            return type(pipeline).lora_state_dict(dict(some))
        except Exception as error:  # the converters raise whatever they meet
            log.debug("not a LoRA that diffusers converts: %s", one_line(error))
            return {}

    groups: dict[str, Tensors] = {}
    for key, value in tensors.items():
        groups.setdefault(re.split(r"\.(?:lora|alpha|diff)", key)[0], {})[key] = value
    left = {key: value for group in groups.values() if not convert(group) for key, value in group.items()}
    return convert(tensors) | left


def _settings(file: Path, part: str) -> dict[str, object]:
    """What is recorded of a component's LoRA: in the file by diffusers, beside it by peft or DanceGRPO."""
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    if "lora_adapter_metadata" in metadata:
        recorded = parse_json(metadata["lora_adapter_metadata"], str(file))
        if not isinstance(recorded, dict):
            raise InputError(f"policy.weights {file}: lora_adapter_metadata is no object; save the LoRA again")
        begins = f"{part}." if part in ENCODERS else "transformer"
        return {key.partition(".")[2]: value for key, value in recorded.items() if key.startswith(begins)}
    if (beside := file.parent / "adapter_config.json").is_file():
        return read_object(beside, "policy.weights")
    if not (beside := file.parent / "lora_config.json").is_file():
        return {}
    recorded = read_object(beside, "policy.weights").get("lora_params")
    alpha = recorded.get("lora_alpha") if isinstance(recorded, dict) else None
    if not isinstance(alpha, int | float):
        raise InputError(f"{beside}: no lora_params.lora_alpha there; mend the file")
    return {"lora_alpha": alpha}


def _scale(settings: dict, module: str, rank: int, alpha: torch.Tensor | None, what: str) -> float:
    """alpha/r of one module, alpha/√r where the LoRA is rank-stabilised."""
    from peft.utils.other import get_pattern_key

    stated = alpha is not None
    if stated:
        value = alpha.item() if alpha.numel() == 1 else tuple(alpha.shape)
    else:
        patterns = settings.get("alpha_pattern") or {}
        patterns = patterns if isinstance(patterns, dict) else {module: patterns}
        value = patterns.get(get_pattern_key(patterns, module), settings.get("lora_alpha"))
        if value is None:
            return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value == 0:
        raise InputError(f"{what}: the alpha of {module} is {str(value)[:40]!r}, no number other than 0; mend what records it")
    return value / (math.sqrt(rank) if settings.get("use_rslora") and not stated else rank)


def _targets(network: nn.Module, settings: dict, what: str) -> list[str]:
    """The modules that a peft config asks for, as peft would find them."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    if settings.get("target_modules") in (None, "", [], "all-linear"):
        return []
    known = {field.name for field in fields(LoraConfig)}
    inside = [module for module, _ in network.named_modules() if module and _has_weight(network, module)]
    try:
        config = LoraConfig(**{key: value for key, value in settings.items() if key in known})
        return [module for module in inside if check_target_module_exists(config, module)]
    except (TypeError, ValueError, re.error) as error:
        raise InputError(f"{what}: its settings are none of a LoRA ({one_line(error)})") from error
