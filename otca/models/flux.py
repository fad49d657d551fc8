"""FLUX: drives any FluxPipeline, from the embedded checkpoint to FLUX.1-dev; encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.models.pipeline import Encoded, Policy


class FluxPolicy(Policy):
    """A FluxPipeline as a policy; latents are packed. Encoded prompts: T5 features (L, D) and CLIP's pooled vector (D)."""

    pipeline_class = "FluxPipeline"
    text_outputs = (0, 1)
    guidance_kind = "embedded (FLUX.1-dev), or true CFG"
    packed = True
    unit_time = True

    @property
    def longest_text(self) -> int:
        """The T5 tokenizer's; FLUX.1-dev's own where none is loaded."""
        return self.pipeline.tokenizer_2.model_max_length if self.pipeline.tokenizer_2 else 512

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        self.image_ids = self.pipeline._prepare_latent_image_ids(1, height // 2, width // 2, self.device, torch.float32)
        return super()._latent_shape(frames, height, width)

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (*super().text_shapes(), (self.pipeline.transformer.config.pooled_projection_dim,))

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        prompt_BLD, pooled_BD = condition.parts
        text_ids = prompt_BLD.new_zeros(prompt_BLD.shape[1], 3)
        return {"pooled_projections": pooled_BD, "txt_ids": text_ids, "img_ids": self.image_ids}
