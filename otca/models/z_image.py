"""Z-Image: drives any ZImagePipeline of the base model (not Turbo); encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.models.pipeline import Encoded, Policy


class ZImagePolicy(Policy):
    """A ZImagePipeline as a policy; latents (B, C, height/8, width/8).

    Encoded prompts: features of the language model (L, D), each of its own length. ``true_guidance`` is guidance as everywhere
    here, v_empty + g·(v − v_empty); the stock pipeline's ``guidance_scale`` is g − 1.
    """

    pipeline_class = "ZImagePipeline"
    lora_targets = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
    text_width = "cap_feat_dim"
    last_layer = "all_final_layer.2-1"
    guidance_kind = "true CFG (stock guidance_scale + 1)"

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        images = list(latents.to(self.dtype).unsqueeze(2))
        out = self.network(images, 1 - sigma_B, [prompt for [prompt] in condition.rows], return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
