"""Qwen-Image: drives QwenImagePipeline and QwenImage21Pipeline; encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.models.pipeline import ATTENTION, Encoded, Policy
from otca.models.texts import Parts


class QwenImagePolicy(Policy):
    """A QwenImagePipeline as a policy; latents are packed: (B, N, 4·channels), N = (height/16)·(width/16) tokens.

    Encoded prompts: features of the vision-language model (L, D), each of its own length. Guidance is rescaled, token by token,
    to the norm of the prompt's own velocity.
    """

    pipeline_class = "QwenImagePipeline"
    guidance_kind = "true CFG, rescaled to the norm of v"
    packed = True
    unit_time = True

    def _guided(self, free: torch.Tensor, guided: torch.Tensor, guidance: float) -> torch.Tensor:
        combined = super()._guided(free, guided, guidance)
        return combined * (guided.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        shapes = [[(1, self.latent_shape[1] // 2, self.latent_shape[2] // 2)]] * len(latents)
        return {"encoder_hidden_states_mask": condition.mask, "img_shapes": shapes}


class QwenImage21Policy(QwenImagePolicy):
    """A QwenImage21Pipeline as a policy; latents (B, N, channels), N = (height/16)·(width/16); alpha is left out of the media."""

    pipeline_class = "QwenImage21Pipeline"
    lora_targets = ATTENTION
    text_width = "context_in_dim"
    guidance_kind = "true CFG"
    latents_a_token = 1

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.pipeline.transformer.config.in_channels, height, width

    def _encode_text(self, pipeline, text: str) -> Parts:
        return (super()._encode_text(pipeline, text)[0][: self.max_sequence_length],)

    def _guided(self, free: torch.Tensor, guided: torch.Tensor, guidance: float) -> torch.Tensor:
        return Policy._guided(self, free, guided, guidance)

    def _decoded(self, grid_BCFHW: torch.Tensor) -> torch.Tensor:
        return super()._decoded(grid_BCFHW)[:, :3]

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        """Texts of one length at a time, since the image's positions follow those of the text."""
        lengths = [len(row[0]) for row in condition.rows]
        groups = [[i for i, own in enumerate(lengths) if own == length] for length in dict.fromkeys(lengths)]
        alike = [(latents[rows], sigma_B[rows], Encoded([condition.rows[i] for i in rows])) for rows in groups]
        out = torch.cat([super(QwenImage21Policy, self)._forward(*given, expert)[:, -self._tokens() :] for given in alike])
        return out[torch.tensor([i for rows in groups for i in rows], device=latents.device).argsort()]  # text tokens came first

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        text, image = condition.parts[0].shape[:2], (len(latents), self._tokens() // 4)  # a slot is 2 × 2 latents
        slots = torch.cat([torch.zeros(text, dtype=torch.bool), torch.ones(image, dtype=torch.bool)], dim=1)
        return {"img_shapes": [[(1, *self.latent_shape[1:])]] * len(latents), "img_mask": slots.to(latents.device)}
