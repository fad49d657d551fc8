"""FLUX: drives any FluxPipeline, from the embedded checkpoint to FLUX.1-dev; encoding and decoding are diffusers' own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from otca.config import PolicyConfig
from otca.files import model_identity, model_notes, resolve_model
from otca.policies.tuning import load_tuned, quiet_libraries, save_tuned, start_tuning

TRAINED = ["transformer"]

LORA_TARGETS = [
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
]
"""Attention projections, as diffusers' FLUX LoRA example targets them."""


@dataclass(frozen=True)
class FluxCondition:
    """prompt_BLD: T5 features (B, L, D); pooled_BD: CLIP's pooled vector; text_ids_L3: positions (L, 3)."""

    prompt_BLD: torch.Tensor
    pooled_BD: torch.Tensor
    text_ids_L3: torch.Tensor

    def rows(self, index) -> FluxCondition:
        """The condition of some samples."""
        return FluxCondition(self.prompt_BLD[index], self.pooled_BD[index], self.text_ids_L3)


class FluxPolicy:
    """A FluxPipeline as a policy; latents are packed: (B, N, 4·channels), N = (height/16)·(width/16) tokens."""

    def __init__(self, config: PolicyConfig, device: torch.device):
        from diffusers import FluxPipeline

        quiet_libraries()
        self.config, self.device = config, device
        folder = resolve_model(config.path)
        notes = model_notes(folder)
        self.pipeline = FluxPipeline.from_pretrained(folder, local_files_only=Path(folder).is_dir())
        self.pipeline.to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        [self.network] = start_tuning(self.pipeline, TRAINED, config, LORA_TARGETS)
        longest = notes.get("max_sequence_length", self.pipeline.tokenizer_2.model_max_length)
        self.max_sequence_length = config.max_sequence_length or longest
        self.true_guidance = config.true_guidance or notes.get("true_guidance", 1.0)
        self.channels = self.pipeline.transformer.config.in_channels // 4
        factor = self.pipeline.vae_scale_factor
        self.grid = (config.height // factor, config.width // factor)
        self.image_ids = self.pipeline._prepare_latent_image_ids(1, self.grid[0] // 2, self.grid[1] // 2, device, torch.float32)
        self.embeds_guidance = bool(self.pipeline.transformer.config.guidance_embeds)
        self.forwards_per_velocity = 2 if self.true_guidance > 1 else 1
        self.protocol = {
            "checkpoint": config.path,
            **model_identity(folder),
            "guidance": config.guidance if self.embeds_guidance else None,
            "true_guidance": self.true_guidance,
            "max_sequence_length": self.max_sequence_length,
        }
        self._encoded: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    # ------------------------------------------------------------------------------------------------- conditioning

    @torch.no_grad()
    def encode(self, texts: list[str]) -> FluxCondition:
        """Encode prompts with the pipeline's own text encoders; every distinct text is encoded once."""
        for text in dict.fromkeys(t for t in texts if t not in self._encoded):
            prompt, pooled, _ = self.pipeline.encode_prompt(
                prompt=text, prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
            )
            self._encoded[text] = (prompt[0], pooled[0])
        rows = [self._encoded[t] for t in texts]
        prompt_BLD, pooled_BD = (torch.stack(part) for part in zip(*rows))
        return FluxCondition(prompt_BLD, pooled_BD, prompt_BLD.new_zeros(prompt_BLD.shape[1], 3))

    # ------------------------------------------------------------------------------------------------------ network

    def noise(self, generators: list[torch.Generator]) -> torch.Tensor:
        """Packed standard normal latents, row b from generator b (drawn on its device, unpacked as diffusers draws them)."""
        shape = (1, self.channels, *self.grid)
        rows = [torch.randn(shape, generator=g, device=g.device) for g in generators]
        return self._pack(torch.cat(rows)).to(self.device)

    def _pack(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        return self.pipeline._pack_latents(latents_BCHW, len(latents_BCHW), self.channels, *self.grid)

    def velocity(self, latents, sigma_B, condition: FluxCondition) -> torch.Tensor:
        """Velocity (B, N, 4·channels) in fp32; with true guidance g, v_empty + g·(v − v_empty), both in one batch."""
        if self.forwards_per_velocity == 1:
            return self._forward(latents, sigma_B, condition)
        count = len(latents)
        empty = self.encode([""]).rows([0] * count)
        both = FluxCondition(
            torch.cat([empty.prompt_BLD, condition.prompt_BLD]),
            torch.cat([empty.pooled_BD, condition.pooled_BD]),
            condition.text_ids_L3,
        )
        free, guided = self._forward(torch.cat([latents] * 2), torch.cat([sigma_B] * 2), both).split(count)
        return free + self.true_guidance * (guided - free)

    def _forward(self, latents, sigma_B, condition: FluxCondition) -> torch.Tensor:
        guidance = torch.full_like(sigma_B, self.config.guidance) if self.embeds_guidance else None
        return self.network(
            hidden_states=latents.to(condition.prompt_BLD.dtype),
            timestep=sigma_B,
            guidance=guidance,
            pooled_projections=condition.pooled_BD,
            encoder_hidden_states=condition.prompt_BLD,
            txt_ids=condition.text_ids_L3,
            img_ids=self.image_ids,
            return_dict=False,
        )[0].float()

    @torch.no_grad()
    def decode(self, latents) -> torch.Tensor:
        """Images (B, 1, 3, H, W) in [0, 1], fp32."""
        vae = self.pipeline.vae
        unpacked = self.pipeline._unpack_latents(latents, self.config.height, self.config.width, self.pipeline.vae_scale_factor)
        scaled = unpacked / vae.config.scaling_factor + vae.config.shift_factor
        image_BCHW = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
        return (image_BCHW.float() / 2 + 0.5).clamp(0, 1).unsqueeze(1)

    # ------------------------------------------------------------------------------------------------------ weights

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters that require a gradient, in module order."""
        return [p for p in self.pipeline.transformer.parameters() if p.requires_grad]

    def save(self, folder: Path) -> None:
        """LoRA: `load_lora_weights` reads the folder (alpha and rank in the metadata). Full: `folder/transformer/`."""
        save_tuned(self.pipeline, TRAINED, self.config.tuning, folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote for the same tuning."""
        load_tuned(self.pipeline, TRAINED, self.config.tuning, folder)
