"""What every adapter does to its networks: freeze what is not trained, add a LoRA, save and load the trained part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from otca.config import PolicyConfig
from otca.distributed import copy_whole, whole_on_cpu
from otca.errors import InputError, one_line
from otca.models.weights import LORA_FILE, unwrapped


def quiet_libraries() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


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
                lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=list(lora_targets))
                network.add_adapter(lora)
            cast_training_params(network, torch.float32)
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
    return networks


def save_tuned(pipeline, names: list[str], tuning: str, folder: Path, write: bool = True) -> None:
    """Full: ``folder/<name>/`` for `from_pretrained`. LoRA: the first network's in ``folder``, others in ``folder/<name>``.

    A LoRA carries alpha and rank in its metadata; stock pipelines read it with `load_lora_weights` (Wan's second expert
    with ``load_into_transformer_2=True``). Every process must call it where weights lie in shards; one is to ``write``.
    """
    from diffusers import FluxPipeline
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
        writer = getattr(pipeline, "save_lora_weights", FluxPipeline.save_lora_weights)  # all alike; HunyuanVideo-1.5 has none
        metadata = network.peft_config["default"].to_dict()
        place = folder if name == names[0] else folder / name
        writer(place, transformer_lora_layers=state, transformer_lora_adapter_metadata=metadata)


def load_tuned(pipeline, names: list[str], tuning: str, folder: Path) -> None:
    """Read what `save_tuned` wrote for the same networks and tuning. Raises InputError for weights of another model."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import load_file

    for name in names:
        network = getattr(pipeline, name)
        try:
            if tuning == "full":
                saved = type(network).from_pretrained(folder / name, local_files_only=True, use_safetensors=True).state_dict()
                own = network.state_dict()
            else:
                saved = load_file((folder if name == names[0] else folder / name) / LORA_FILE)
                saved = {unwrapped(key): value for key, value in saved.items()}
                own = get_peft_model_state_dict(network)
            if saved.keys() != own.keys():
                raise ValueError(f"keys that one of the two lacks: {sorted(saved.keys() ^ own.keys())[:3]}")
            for key, value in own.items():
                copy_whole(value, saved[key])
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # of from_pretrained, too
            raise InputError(f"checkpoint {folder} is of another model than policy.path ({name}: {one_line(error)})") from error
