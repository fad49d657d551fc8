"""VideoAlign's network: a Qwen2-VL with LoRA that gives a number where it would give words, loaded from the published file.

Axes: B videos, L tokens, N patches, P values of a patch, D features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from otca.rewards.published import load_whole, read_weights

ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of the language model that carry a LoRA. It is applied, not merged: a merged weight would lose it to rounding."""

RENAMED = {
    "base_model.model.visual.": "model.visual.",
    "base_model.model.model.": "model.language_model.",
    "base_model.model.rm_head.": "rm_head.",
}
"""Beginnings of published keys → where transformers 5 keeps these layers."""

WORD_HEAD = "base_model.model.lm_head.weight"
"""In the file, but no score depends on it."""


class Angles(torch.nn.Module):
    """The vision tower's rotary embedding as trained and published, in bfloat16: frequencies, angles, cosines and sines."""

    def __init__(self, frequency_D: torch.Tensor):
        super().__init__()
        self.register_buffer("frequency_D", frequency_D, persistent=False)

    def forward(self, hidden: torch.Tensor, position_N2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = (position_N2.bfloat16()[..., None] * self.frequency_D.bfloat16()).flatten(1)
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos().float(), angle.sin().float()


class Network(torch.nn.Module):
    """A Qwen2-VL with LoRA and, instead of words, one number per token."""

    def __init__(self, config: Any, rank: int, alpha: int):
        from peft import LoraConfig, inject_adapter_in_model
        from transformers import Qwen2VLModel

        super().__init__()
        lora = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(ADAPTED))
        self.model = inject_adapter_in_model(lora, Qwen2VLModel(config))
        self.rm_head = torch.nn.Linear(config.text_config.hidden_size, 1, bias=False)

    @classmethod
    def empty(cls, config: Any, rank: int, alpha: int, device: torch.device) -> Network:
        """Without weights: bfloat16 on CUDA as published, float32 on the CPU.

        The published code casts the whole network to bfloat16, rotary frequencies too, in training as in use. They are
        rounded so on every device: at a distance of 1,000 tokens the rounding turns an angle by up to two radians.
        """
        with torch.device("meta"):
            network = cls(config, rank, alpha)
        network = network.to(torch.bfloat16 if device.type == "cuda" else torch.float32).to_empty(device=device).eval()
        text, vision = network.model.language_model, network.model.visual
        text.rotary_emb = type(text.rotary_emb)(config.text_config).to(device, torch.bfloat16)
        vision.rotary_pos_emb = Angles(type(vision.rotary_pos_emb)(config.vision_config).inv_freq.to(device))
        return network.requires_grad_(False)

    def forward(self, token_BL: torch.Tensor, real_BL: torch.Tensor, patch_NP: torch.Tensor, grid_B3: torch.Tensor):
        """Features of every token (B, L, D), at positions 0, 1, 2 … for words and patches alike.

        Qwen2-VL has three-dimensional positions for patches; the published code never passed them on.
        """
        position_3BL = torch.arange(token_BL.shape[1], device=token_BL.device).expand(3, *token_BL.shape)
        return self.model(
            input_ids=token_BL,
            attention_mask=real_BL,
            position_ids=position_3BL,
            pixel_values_videos=patch_NP,
            video_grid_thw=grid_B3,
            use_cache=False,
        ).last_hidden_state


def load_network(reward: str, config: Any, rank: int, alpha: int, path: Path, device: torch.device) -> Network:
    """The network with the published weights. Raises InputError for a file that does not fit the configuration."""
    who = f"reward {reward!r}"
    weights = {key: value for key, value in read_weights(who, path).items() if key != WORD_HEAD}
    return load_whole(who, Network.empty(config, rank, alpha, device), weights, path, own_name)


def own_name(key: str) -> str:
    """The network's name of a tensor of the file."""
    return next((new + key.removeprefix(old) for old, new in RENAMED.items() if key.startswith(old)), key)
