"""FLUX: drives any FluxPipeline, from the embedded checkpoint to FLUX.1-dev; encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.config import PolicyConfig
from otca.models.pipeline import Encoded, PipelinePolicy, decoded_images
from otca.models.texts import Parts


class FluxPolicy(PipelinePolicy):
    """A FluxPipeline as a policy; latents are packed: (B, N, 4·channels), N = (height/16)·(width/16) tokens.

    Encoded prompts: T5 features (B, L, D) and CLIP's pooled vector (B, D).
    """

    pipeline_class = "FluxPipeline"
    lora_targets = (  # attention projections, as diffusers' FLUX LoRA example targets them
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "attn.add_q_proj",
        "attn.add_k_proj",
        "attn.add_v_proj",
        "attn.to_add_out",
    )

    def __init__(self, config: PolicyConfig, device: torch.device, pipeline=None, networks_on: torch.device | None = None):
        super().__init__(config, device, pipeline, networks_on)
        transformer = self.pipeline.transformer.config
        self.channels = transformer.in_channels // 4
        self.embeds_guidance = bool(transformer.guidance_embeds)
        self._set_size(config.height, config.width)

    @property
    def protocol(self) -> dict[str, object]:
        """What shapes its samples, for manifests; ``guidance`` is the embedded one."""
        return super().protocol | {"guidance": self.config.guidance if self.embeds_guidance else None}

    def _set_size(self, height: int, width: int) -> None:
        self.height, self.width, factor = height, width, self.pipeline.vae_scale_factor
        self.grid = (height // factor, width // factor)
        rows, columns = self.grid[0] // 2, self.grid[1] // 2
        self.image_ids = self.pipeline._prepare_latent_image_ids(1, rows, columns, self.device, torch.float32)

    def _tokens(self) -> int:
        return len(self.image_ids)

    def _longest_text(self) -> int:
        return self.pipeline.tokenizer_2.model_max_length if self.pipeline.tokenizer_2 else 512  # FLUX.1-dev's own

    def _encode_text(self, pipeline, text: str) -> Parts:
        prompt, pooled, _ = pipeline.encode_prompt(
            prompt=text, prompt_2=None, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return prompt[0], pooled[0]

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt."""
        sizes = self.pipeline.transformer.config
        return (self.max_sequence_length, sizes.joint_attention_dim), (sizes.pooled_projection_dim,)

    def noise(self, generators: list[torch.Generator]) -> torch.Tensor:
        """Packed standard normal latents, row b from generator b (drawn on its device, unpacked as diffusers draws them)."""
        return self._pack(self._draw((self.channels, *self.grid), generators)).to(self.device)

    def _pack(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        return self.pipeline._pack_latents(latents_BCHW, len(latents_BCHW), self.channels, *self.grid)

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        prompt_BLD, pooled_BD = condition.parts
        return self.network(
            hidden_states=latents.to(self.dtype),
            timestep=sigma_B,
            guidance=torch.full_like(sigma_B, self.config.guidance) if self.embeds_guidance else None,
            pooled_projections=pooled_BD,
            encoder_hidden_states=prompt_BLD,
            txt_ids=prompt_BLD.new_zeros(prompt_BLD.shape[1], 3),
            img_ids=self.image_ids,
            return_dict=False,
        )[0]

    @torch.no_grad()
    def decode(self, latents) -> torch.Tensor:
        """Images (B, 1, 3, H, W) in [0, 1], fp32."""
        return decoded_images(self.pipeline.vae, self.latent_grid(latents).squeeze(2))

    def latent_grid(self, latents) -> torch.Tensor:
        """Latents (B, C, 1, H, W)."""
        return self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor).unsqueeze(2)
