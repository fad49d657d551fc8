"""Z-Image: drives any ZImagePipeline of the base model (not Turbo); encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.models.pipeline import Encoded, PipelinePolicy
from otca.models.texts import Parts


class ZImagePolicy(PipelinePolicy):
    """A ZImagePipeline as a policy; latents (B, C, height/8, width/8).

    Encoded prompts: features of the language model (L, D), each of its own length. ``true_guidance`` is guidance as everywhere
    here, v_empty + g·(v − v_empty); the stock pipeline's ``guidance_scale`` is g − 1.
    """

    pipeline_class = "ZImagePipeline"
    lora_targets = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
    guidance_kind = "true CFG (stock guidance_scale + 1)"

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.pipeline.transformer.config.in_channels, height, width

    def _encode_text(self, pipeline, text: str) -> Parts:
        prompts, _ = pipeline.encode_prompt(
            prompt=text, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.max_sequence_length
        )
        return (prompts[0],)

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt, the longest there is."""
        return ((self.max_sequence_length, self.pipeline.transformer.config.cap_feat_dim),)

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        images = list(latents.to(self.dtype).unsqueeze(2))
        out = self.network(images, 1 - sigma_B, [prompt for [prompt] in condition.rows], return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
