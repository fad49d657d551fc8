"""What every adapter does to its networks: freeze what is not trained, add a LoRA, save and load the trained part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from otca.config import PolicyConfig
from otca.errors import InputError, one_line
from otca.sharding import copy_whole, whole_on_cpu
from otca.untrusted import parse_json

log = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
"""Name under which diffusers looks for a LoRA in a folder."""

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Files of a LoRA as peft saves it."""


def quiet_libraries() -> None:
    """No progress bars while pipelines load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def apply_weights(pipeline, names: list[str], path: str) -> None:
    """Start from what this or another trainer made of the model: merge a LoRA, or replace the trained networks.

    ``path`` is a folder with a LoRA as diffusers saves it (`LORA_FILE`; DanceGRPO's alpha lies beside it), a LoRA as peft saves
    it (``adapter_config.json``, so Flow-GRPO, whose checkpoints have it in ``lora/``), a network (``config.json``, so DanceGRPO),
    or one folder a network (``transformer/``, so full runs here). A model of two experts needs one of each.
    Nothing is unpickled. Raises InputError where there is none of these, or one that is damaged or of another model.
    """
    try:
        _apply(pipeline, names, path)
    except InputError:
        raise
    except Exception as error:  # the loaders of three libraries raise many kinds
        raise InputError(f"policy.weights {path} cannot be loaded ({one_line(error)}); fetch or save it again") from error


def _apply(pipeline, names: list[str], path: str) -> None:
    folder = Path(path).expanduser()
    if (folder / "lora" / "adapter_config.json").is_file():
        folder = folder / "lora"
    if (folder / LORA_FILE).is_file():
        return _merge_loras(pipeline, names, folder)
    peft, whole = ({name: _own_folder(folder, name, names, file) for name in names} for file in (PEFT_FILES[0], "config.json"))
    if any(peft.values()):
        _refuse_missing(path, peft)
        for name, own in peft.items():
            if not (own / PEFT_FILES[1]).is_file():
                raise InputError(f"policy.weights {path}: no {PEFT_FILES[1]} there; save the LoRA as safetensors")
            from peft import PeftModel

            merged = PeftModel.from_pretrained(getattr(pipeline, name), own).merge_and_unload()
            pipeline.register_modules(**{name: merged})
    elif any(whole.values()):
        _refuse_missing(path, whole)
        for name, own in whole.items():
            former = getattr(pipeline, name)
            network = type(former).from_pretrained(own, local_files_only=True, use_safetensors=True, dtype=former.dtype)
            pipeline.register_modules(**{name: network})
    else:
        raise InputError(f"policy.weights {path}: no {LORA_FILE}, {PEFT_FILES[0]}, config.json or {names[0]}/ there")


def _own_folder(folder: Path, name: str, names: list[str], file: str) -> Path | None:
    """Where one network's weights lie, which a file tells: its own folder, or, where it is the only one, the folder itself."""
    places = [folder / name, *([folder] if len(names) == 1 else [])]
    bare = len(names) > 1 and (folder / file).is_file()
    if bare and not any((folder / other / file).is_file() for other in names):
        said = f"one network, but the model has {len(names)} ({', '.join(names)}), and it does not say for which"
        raise InputError(f"policy.weights {folder}: {said}; give each its own in a folder of its name")
    return next((place for place in places if (place / file).is_file()), None)


def _refuse_missing(path: str, found: dict[str, Path | None]) -> None:
    missing = [name for name, own in found.items() if own is None]
    if missing:
        raise InputError(f"policy.weights {path}: nothing for {', '.join(missing)} there; each network needs its own")


def _merge_loras(pipeline, names: list[str], folder: Path) -> None:
    """Merge LoRAs as diffusers saves them, one network after another, each with its own alpha."""
    for name in names:
        options = {"use_safetensors": True} | ({} if name == names[0] else {"load_into_transformer_2": True})
        own = _lora_folder(folder, name, names)
        pipeline.load_lora_weights(own, weight_name=LORA_FILE, **options)
        if not pipeline.get_active_adapters():
            raise InputError(f"policy.weights {folder}: none of the weights in {LORA_FILE} is of this model")
        pipeline.fuse_lora(components=[name], lora_scale=_unrecorded_scale(own))
        pipeline.unload_lora_weights()


def _unrecorded_scale(folder: Path) -> float:
    """Alpha over rank of a LoRA where diffusers cannot know it and takes 1: as DanceGRPO writes it beside the file, else 1."""
    from safetensors import safe_open

    with safe_open(folder / LORA_FILE, "pt") as file:
        keys, metadata = list(file.keys()), file.metadata() or {}
        ranks = {file.get_slice(key).get_shape()[0] for key in keys if key.endswith(("lora_A.weight", "lora.down.weight"))}
    if "lora_adapter_metadata" in metadata or any(key.endswith(".alpha") for key in keys):
        return 1.0
    beside = folder / "lora_config.json"
    if not beside.is_file():
        log.warning("%s records no alpha; it is taken to be the rank, as diffusers does", folder / LORA_FILE)
        return 1.0
    recorded = parse_json(beside.read_text(encoding="utf-8"), str(beside))
    settings = recorded.get("lora_params") if isinstance(recorded, dict) else None
    alpha = settings.get("lora_alpha") if isinstance(settings, dict) else None
    if not isinstance(alpha, int | float) or len(ranks) != 1:
        raise InputError(f"{beside}: no lora_params.lora_alpha there, or weights of several ranks {sorted(ranks)}; mend the file")
    return alpha / ranks.pop()


def start_tuning(pipeline, names: list[str], config: PolicyConfig, lora_targets: Sequence[str]) -> list[nn.Module]:
    """Freeze every component but the named ones, which are returned ready to be trained: whole, by a new LoRA, or not at all."""
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            part.requires_grad_(name in names and config.tuning == "full").eval()
    networks = [getattr(pipeline, name) for name in names]
    for network in networks:
        if config.tuning == "lora":
            from diffusers.training_utils import cast_training_params
            from peft import LoraConfig

            with torch.random.fork_rng(devices=[]):  # the same start in every arm and after every resume
                torch.manual_seed(0)
                targets = list(lora_targets)
                network.add_adapter(LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=targets))
            cast_training_params(network, torch.float32)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
    return networks


def save_tuned(pipeline, names: list[str], tuning: str, folder: Path, write: bool = True) -> None:
    """Full: ``folder/<name>/`` for `from_pretrained`. LoRA: the first network's in ``folder``, others in ``folder/<name>``.

    A LoRA carries alpha and rank in its metadata; stock pipelines read it with `load_lora_weights` (Wan's second expert
    with ``load_into_transformer_2=True``). Every process must call it where weights lie in shards; one is to ``write``.
    """
    from peft.utils import get_peft_model_state_dict

    for name in names:
        network = getattr(pipeline, name)
        state = whole_on_cpu(network.state_dict() if tuning == "full" else get_peft_model_state_dict(network), write)
        if not write:
            continue
        if tuning == "full":
            with torch.device("meta"):
                copy = type(network).from_config(network.config)
            copy.load_state_dict(state, assign=True)
            copy.save_pretrained(folder / name)
            continue
        type(pipeline).save_lora_weights(
            _lora_folder(folder, name, names),
            transformer_lora_layers=state,
            transformer_lora_adapter_metadata=network.peft_config["default"].to_dict(),
        )


def load_tuned(pipeline, names: list[str], tuning: str, folder: Path) -> None:
    """Read what `save_tuned` wrote for the same networks and tuning. Raises ValueError for weights of another model."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    for name in names:
        network = getattr(pipeline, name)
        if tuning == "full":
            saved = type(network).from_pretrained(folder / name, local_files_only=True, use_safetensors=True).state_dict()
            own = network.state_dict()
        else:
            saved = load_file(_lora_folder(folder, name, names) / LORA_FILE)
            saved = {key.removeprefix("transformer."): value for key, value in saved.items()}
            own = get_peft_model_state_dict(network)
        if saved.keys() != own.keys():
            raise ValueError(f"{folder}: keys that it and {name} do not share: {sorted(saved.keys() ^ own.keys())[:3]}")
        for key, value in own.items():
            copy_whole(value, saved[key])


def _lora_folder(folder: Path, name: str, names: list[str]) -> Path:
    return folder if name == names[0] else folder / name
