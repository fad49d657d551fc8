"""Wan: drives any WanPipeline: the embedded checkpoint, Wan2.1, Wan2.2-TI2V-5B and the two experts of Wan2.2-A14B."""

from __future__ import annotations

import math

import torch
from torch import nn

from otca.config import PolicyConfig
from otca.errors import InputError
from otca.models.pipeline import Encoded, Policy

BOUNDARY_TOLERANCE = 1e-6
"""Noise levels within this of the boundary count as on it, so that rounding never picks the expert."""


class Experts(nn.Module):
    """The network that is trained: one transformer, or Wan2.2's two, of which ``low`` answers at low noise."""

    def __init__(self, high: nn.Module, low: nn.Module | None):
        super().__init__()
        self.high, self.low = high, low
        self._no_split_modules = high._no_split_modules  # the blocks that shards are gathered by

    def forward(self, low: bool, **inputs) -> tuple[torch.Tensor]:
        """What one transformer says; every sample of a call is at the same noise level."""
        return (self.low if low else self.high)(**inputs)


class WanPolicy(Policy):
    """A WanPipeline as a policy; latents (B, C, 1 + (frames − 1)/4, height/8, width/8), normalised per channel.

    Encoded prompts: UMT5 features (B, L, D), zero after the end of the text. With two experts the high-noise one answers at
    σ ≥ boundary_ratio, the boundary included, as in diffusers; ``true_guidance`` is theirs, high noise first.
    """

    pipeline_class = "WanPipeline"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")  # as diffusers' Wan LoRAs have them
    text_width = "text_dim"
    is_video = True

    def __init__(self, config: PolicyConfig, device: torch.device, pipeline=None, networks_on: torch.device | None = None):
        super().__init__(config, device, pipeline, networks_on)
        self.network = Experts(self.networks[0], self.networks[1] if len(self.networks) == 2 else None)
        low_noise = config.true_guidance_2 or self.notes.get("true_guidance_2", self.true_guidance)
        self.true_guidance = (self.true_guidance, low_noise)
        self.forwards_per_velocity = 2 if max(self.true_guidance) > 1 else 1

    def _trained(self) -> list[str]:
        self.boundary = self.pipeline.config.boundary_ratio
        if (self.boundary is None) != (self.pipeline.transformer_2 is None):
            raise InputError(f"policy.path {self.config.path}: a second transformer needs a boundary_ratio, and the reverse")
        return ["transformer"] + ["transformer_2"] * (self.boundary is not None)

    @property
    def protocol(self) -> dict[str, object]:
        return super().protocol | {"true_guidance": list(self.true_guidance)}

    @property
    def latents_a_token(self) -> int:
        return math.prod(self.pipeline.transformer.config.patch_size)

    def is_low_noise(self, sigma: float) -> bool:
        """Whether the low-noise expert answers at a noise level; the boundary itself belongs to the high-noise one."""
        return self.boundary is not None and sigma < self.boundary - BOUNDARY_TOLERANCE

    def _expert_at(self, sigma_B) -> int:
        """0 for high noise, 1 for low; ValueError for noise levels on both sides of the boundary in one call."""
        sides = {self.is_low_noise(sigma) for sigma in sigma_B.tolist()}
        if len(sides) > 1:
            raise ValueError("one call cannot serve noise levels on both sides of the experts' boundary; split the batch")
        return int(sides.pop())

    def _guidance_of(self, expert: int) -> float:
        return self.true_guidance[expert]

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        given: dict[str, object] = {"low": bool(expert)}
        if self.pipeline.config.expand_timesteps:  # Wan2.2-TI2V-5B has a noise level for each token
            timestep_B = sigma_B * self.pipeline.scheduler.config.num_train_timesteps
            given["timestep"] = timestep_B[:, None].expand(-1, self._tokens())
        return given
