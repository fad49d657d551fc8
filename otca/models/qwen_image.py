"""Qwen-Image: drives QwenImagePipeline and QwenImage21Pipeline; encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.models.flux import JOINT_ATTENTION
from otca.models.pipeline import Encoded, PipelinePolicy
from otca.models.texts import Parts


class QwenImagePolicy(PipelinePolicy):
    """A QwenImagePipeline as a policy; latents are packed: (B, N, 4·channels), N = (height/16)·(width/16) tokens.

    Encoded prompts: features of the vision-language model (L, D), each of its own length. Guidance is rescaled, token by token,
    to the norm of the prompt's own velocity.
    """

    pipeline_class = "QwenImagePipeline"
    lora_targets = JOINT_ATTENTION
    guidance_kind = "true CFG, rescaled to the norm of v"

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.pipeline.transformer.config.in_channels // 4, height, width

    def _encode_text(self, pipeline, text: str) -> Parts:
        prompt, _ = pipeline.encode_prompt(prompt=text, device=self.device, max_sequence_length=self.max_sequence_length)
        return (prompt[0],)

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt, the longest there is."""
        return ((self.max_sequence_length, self.pipeline.transformer.config.joint_attention_dim),)

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pipeline._pack_latents(latents, len(latents), *self.latent_shape)

    def latent_grid(self, latents) -> torch.Tensor:
        """Latents (B, C, 1, H, W)."""
        return self.pipeline._unpack_latents(latents, self.height, self.width, self.pipeline.vae_scale_factor)

    def _guided(self, free: torch.Tensor, guided: torch.Tensor, guidance: float) -> torch.Tensor:
        combined = super()._guided(free, guided, guidance)
        return combined * (guided.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        embeds = self.pipeline.transformer.config.guidance_embeds
        return self.network(
            hidden_states=latents.to(self.dtype),
            timestep=sigma_B,
            guidance=torch.full_like(sigma_B, self.config.guidance) if embeds else None,
            encoder_hidden_states=condition.parts[0],
            encoder_hidden_states_mask=condition.mask,
            img_shapes=[[(1, self.latent_shape[1] // 2, self.latent_shape[2] // 2)]] * len(latents),
            return_dict=False,
        )[0]


class QwenImage21Policy(QwenImagePolicy):
    """A QwenImage21Pipeline as a policy; latents (B, N, channels), N = (height/16)·(width/16); alpha is left out of the media."""

    pipeline_class = "QwenImage21Pipeline"
    lora_targets = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
    guidance_kind = "true CFG"

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.pipeline.transformer.config.in_channels, height, width

    def _tokens(self) -> int:
        return self.latent_shape[1] * self.latent_shape[2]

    def _encode_text(self, pipeline, text: str) -> Parts:
        return (pipeline.encode_prompt(prompt=text, device=self.device)[0][0, : self.max_sequence_length],)

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the parts of one encoded prompt, the longest there is."""
        return ((self.max_sequence_length, self.pipeline.transformer.config.context_in_dim),)

    def _guided(self, free: torch.Tensor, guided: torch.Tensor, guidance: float) -> torch.Tensor:
        return PipelinePolicy._guided(self, free, guided, guidance)

    def _decoded(self, grid_BCFHW: torch.Tensor) -> torch.Tensor:
        return super()._decoded(grid_BCFHW)[:, :3]

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        """Texts of one length at a time, since the image's positions follow those of the text."""
        lengths = [len(row[0]) for row in condition.rows]
        groups = [[i for i, own in enumerate(lengths) if own == length] for length in dict.fromkeys(lengths)]
        out = [self._same_length(latents[rows], sigma_B[rows], Encoded([condition.rows[i] for i in rows])) for rows in groups]
        order = torch.tensor([i for rows in groups for i in rows], device=latents.device).argsort()
        return torch.cat(out)[order]

    def _same_length(self, latents, sigma_B, condition: Encoded) -> torch.Tensor:
        [prompt_BLD] = condition.parts
        text, image = prompt_BLD.shape[:2], (len(latents), self._tokens() // 4)  # a slot is 2 × 2 latents
        slots = torch.cat([torch.zeros(text, dtype=torch.bool), torch.ones(image, dtype=torch.bool)], dim=1)
        out = self.network(
            hidden_states=latents.to(self.dtype),
            timestep=sigma_B,
            encoder_hidden_states=prompt_BLD,
            img_shapes=[[(1, *self.latent_shape[1:])]] * len(latents),
            img_mask=slots.to(latents.device),
            return_dict=False,
        )[0]
        return out[:, -self._tokens() :]  # the text's tokens come first
