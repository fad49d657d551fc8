"""FLUX: drives any FluxPipeline, from the embedded checkpoint to FLUX.1-dev; encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.models.pipeline import Encoded, PipelinePolicy
from otca.models.texts import Parts

ATTENTION = tuple(f"attn.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"))
JOINT_ATTENTION = (*ATTENTION, "attn.to_add_out")
"""Attention projections of both streams, as diffusers' own LoRA examples target them."""


class FluxPolicy(PipelinePolicy):
    """A FluxPipeline as a policy; latents are packed: (B, N, 4·channels), N = (height/16)·(width/16) tokens.

    Encoded prompts: T5 features (L, D) and CLIP's pooled vector (D).
    """

    pipeline_class = "FluxPipeline"
    lora_targets = JOINT_ATTENTION
    guidance_kind = "embedded (FLUX.1-dev), or true CFG"

    @property
    def longest_text(self) -> int:
        """The T5 tokenizer's; FLUX.1-dev's own where none is loaded."""
        return self.pipeline.tokenizer_2.model_max_length if self.pipeline.tokenizer_2 else 512

    @property
    def protocol(self) -> dict[str, object]:
        """What shapes its samples, for manifests; ``guidance`` is the embedded one."""
        embeds = self.pipeline.transformer.config.guidance_embeds
        return super().protocol | {"guidance": self.config.guidance if embeds else None}

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        self.image_ids = self.pipeline._prepare_latent_image_ids(1, height // 2, width // 2, self.device, torch.float32)
        return self.pipeline.transformer.config.in_channels // 4, height, width

    def _encode_text(self, pipeline, text: str) -> Parts:
        prompt, pooled, _ = pipeline.encode_prompt(
            prompt=text, prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return prompt[0], pooled[0]

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt."""
        sizes = self.pipeline.transformer.config
        return (self.max_sequence_length, sizes.joint_attention_dim), (sizes.pooled_projection_dim,)

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pipeline._pack_latents(latents, len(latents), *self.latent_shape)

    def latent_grid(self, latents) -> torch.Tensor:
        """Latents (B, C, 1, H, W)."""
        return self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor).unsqueeze(2)

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        prompt_BLD, pooled_BD = condition.parts
        embeds = self.pipeline.transformer.config.guidance_embeds
        return self.network(
            hidden_states=latents.to(self.dtype),
            timestep=sigma_B,
            guidance=torch.full_like(sigma_B, self.config.guidance) if embeds else None,
            pooled_projections=pooled_BD,
            encoder_hidden_states=prompt_BLD,
            txt_ids=prompt_BLD.new_zeros(prompt_BLD.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0]
