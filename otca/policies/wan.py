"""Wan: drives any WanPipeline, from the embedded checkpoint to Wan2.1 and the two experts of Wan2.2-A14B."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from otca.config import PolicyConfig
from otca.errors import InputError
from otca.files import model_identity, model_notes, resolve_model
from otca.policies.tuning import load_tuned, quiet_libraries, save_tuned, start_tuning

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
"""Attention projections and feed-forward layers, as diffusers' Wan LoRAs have them."""

BOUNDARY_TOLERANCE = 1e-6
"""Noise levels within this of the boundary count as on it, so that rounding never picks the expert."""


@dataclass(frozen=True)
class WanCondition:
    """prompt_BLD: UMT5 features (B, L, D), zero after the end of the text."""

    prompt_BLD: torch.Tensor

    def rows(self, index) -> WanCondition:
        """The condition of some samples."""
        return WanCondition(self.prompt_BLD[index])


class Experts(nn.Module):
    """The network that is trained: one transformer, or Wan2.2's two, of which ``low`` answers at low noise."""

    def __init__(self, high: nn.Module, low: nn.Module | None):
        super().__init__()
        self.high, self.low = high, low

    def forward(self, low: bool, **inputs) -> torch.Tensor:
        """Velocity of one transformer; every sample of a call is at the same noise level."""
        return (self.low if low else self.high)(**inputs, return_dict=False)[0]


class WanPolicy:
    """A WanPipeline as a policy; latents (B, C, 1 + (frames − 1)/4, height/8, width/8), normalised per channel.

    With two experts the high-noise one answers at σ ≥ boundary_ratio, the boundary included, as in diffusers.
    """

    def __init__(self, config: PolicyConfig, device: torch.device):
        from diffusers import WanPipeline

        quiet_libraries()
        self.config, self.device = config, device
        folder = resolve_model(config.path)
        notes = model_notes(folder)
        self.pipeline = WanPipeline.from_pretrained(folder, local_files_only=Path(folder).is_dir())
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.boundary = self.pipeline.config.boundary_ratio
        if (self.boundary is None) != (self.pipeline.transformer_2 is None):
            raise InputError(f"policy.path {config.path}: a second transformer needs a boundary_ratio, and the reverse")
        self.trained = ["transformer"] + ["transformer_2"] * (self.boundary is not None)
        networks = start_tuning(self.pipeline, self.trained, config, LORA_TARGETS)
        self.network = Experts(networks[0], networks[1] if len(networks) == 2 else None)
        longest = notes.get("max_sequence_length", 512)
        self.max_sequence_length = config.max_sequence_length or longest
        guidance = config.true_guidance or notes.get("true_guidance", 1.0)
        self.true_guidance = (guidance, config.true_guidance_2 or notes.get("true_guidance_2", guidance))
        self.forwards_per_velocity = 2 if max(self.true_guidance) > 1 else 1
        self.latent_shape = self._latent_shape(config.frames or notes.get("frames", 0))
        vae = self.pipeline.vae.config
        self.latents_mean = torch.tensor(vae.latents_mean, device=device).view(1, -1, 1, 1, 1)
        self.latents_std = torch.tensor(vae.latents_std, device=device).view(1, -1, 1, 1, 1)
        self.protocol = {
            "checkpoint": config.path,
            **model_identity(folder),
            "true_guidance": list(self.true_guidance),
            "max_sequence_length": self.max_sequence_length,
            "latent_shape": list(self.latent_shape),
        }
        self._encoded: dict[str, torch.Tensor] = {}

    def _latent_shape(self, frames: int) -> tuple[int, int, int, int]:
        space, time = self.pipeline.vae_scale_factor_spatial, self.pipeline.vae_scale_factor_temporal
        if frames < 1 or frames % time != 1:
            raise InputError(f"policy.frames is {frames}; {self.config.path} makes {time}·k + 1 frames, such as {time + 1}")
        latent_frames = (frames - 1) // time + 1
        return self.pipeline.vae.config.z_dim, latent_frames, self.config.height // space, self.config.width // space

    # ------------------------------------------------------------------------------------------------- conditioning

    @torch.no_grad()
    def encode(self, texts: list[str]) -> WanCondition:
        """Encode prompts with the pipeline's own text encoder; every distinct text is encoded once."""
        for text in dict.fromkeys(t for t in texts if t not in self._encoded):
            prompt, _ = self.pipeline.encode_prompt(
                prompt=text, do_classifier_free_guidance=False, device=self.device, max_sequence_length=self.max_sequence_length
            )
            self._encoded[text] = prompt[0]
        return WanCondition(torch.stack([self._encoded[t] for t in texts]))

    # ------------------------------------------------------------------------------------------------------ network

    def noise(self, generators: list[torch.Generator]) -> torch.Tensor:
        """Standard normal latents, row b from generator b (drawn on its device)."""
        rows = [torch.randn((1, *self.latent_shape), generator=g, device=g.device) for g in generators]
        return torch.cat(rows).to(self.device)

    def is_low_noise(self, sigma: float) -> bool:
        """Whether the low-noise expert answers at a noise level; the boundary itself belongs to the high-noise one."""
        return self.boundary is not None and sigma < self.boundary - BOUNDARY_TOLERANCE

    def velocity(self, latents, sigma_B, condition: WanCondition) -> torch.Tensor:
        """Velocity like the latents, in fp32; guided where the expert's guidance is above 1, both passes in one batch.

        Raises ValueError for noise levels on both sides of the boundary in one call.
        """
        sides = {self.is_low_noise(sigma) for sigma in sigma_B.tolist()}
        if len(sides) > 1:
            raise ValueError("one call cannot serve noise levels on both sides of the experts' boundary; split the batch")
        low, count = sides.pop(), len(latents)
        guidance = self.true_guidance[low]
        if guidance <= 1:
            return self._forward(low, latents, sigma_B, condition.prompt_BLD)
        empty = self.encode([""]).prompt_BLD.expand(count, -1, -1)
        both = torch.cat([empty, condition.prompt_BLD])
        free, guided = self._forward(low, torch.cat([latents] * 2), torch.cat([sigma_B] * 2), both).split(count)
        return free + guidance * (guided - free)

    def _forward(self, low: bool, latents, sigma_B, prompt_BLD) -> torch.Tensor:
        timestep = sigma_B * self.pipeline.scheduler.config.num_train_timesteps
        latents = latents.to(prompt_BLD.dtype)
        return self.network(low, hidden_states=latents, timestep=timestep, encoder_hidden_states=prompt_BLD).float()

    @torch.no_grad()
    def decode(self, latents) -> torch.Tensor:
        """Clips (B, F, 3, H, W) in [0, 1], fp32."""
        vae = self.pipeline.vae
        raw = latents * self.latents_std + self.latents_mean
        clip_BCFHW = vae.decode(raw.to(vae.dtype), return_dict=False)[0]
        return (clip_BCFHW.float() / 2 + 0.5).clamp(0, 1).transpose(1, 2)

    # ------------------------------------------------------------------------------------------------------ weights

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters that require a gradient, expert by expert, in module order."""
        return [p for name in self.trained for p in getattr(self.pipeline, name).parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        """LoRA: `load_lora_weights` reads the folder (and `transformer_2/` for the second expert). Full: `transformer/` …"""
        save_tuned(self.pipeline, self.trained, self.config.tuning, folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote for the same tuning."""
        load_tuned(self.pipeline, self.trained, self.config.tuning, folder)
