"""FLUX: FluxPipeline, from the embedded checkpoint to FLUX.1-dev; Flux2Pipeline (dev) and Flux2KleinPipeline (klein base)."""

from __future__ import annotations

import math

import torch

from otca.models.pipeline import JOINT_ATTENTION, Encoded, Policy

STEPS = 50
"""Steps of the stock pipelines, for which FLUX.2's time shift is computed: theirs depends on the number of steps."""


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


class Flux2Policy(Policy):
    """A Flux2Pipeline as a policy; latents are packed: (B, N, 4·channels), N = (height/16)·(width/16) tokens.

    Encoded prompts: features of three layers of the language model, side by side, (L, 3·D).
    """

    pipeline_class = "Flux2Pipeline"
    lora_targets = (*JOINT_ATTENTION, "attn.to_qkv_mlp_proj")  # both kinds of blocks, as diffusers' FLUX.2 example
    guidance_kind = "embedded"
    latents_a_token = 1
    unit_time = True

    @property
    def shift(self) -> float:
        """The pipelines' own time shift e^μ, μ by tokens and steps, for `STEPS` steps."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return math.exp(compute_empirical_mu(self._tokens(), STEPS))

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return super()._latent_shape(frames, height // 2, width // 2)

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        return self.pipeline._pack_latents(latents)

    def _patches(self, latents: torch.Tensor) -> torch.Tensor:
        return latents.transpose(1, 2).reshape(len(latents), *self.latent_shape)

    def latent_grid(self, latents) -> torch.Tensor:
        """Latents (B, C, 1, H, W)."""
        return self.pipeline._unpatchify_latents(self._patches(latents)).unsqueeze(2)

    def _decoded(self, grid_BCFHW: torch.Tensor) -> torch.Tensor:
        vae, patches = self.pipeline.vae, self.pipeline._patchify_latents(grid_BCFHW.squeeze(2))
        mean, variance = (values.view(1, -1, 1, 1) for values in (vae.bn.running_mean, vae.bn.running_var))
        raw = patches * torch.sqrt(variance + vae.config.batch_norm_eps) + mean
        return vae.decode(self.pipeline._unpatchify_latents(raw).to(vae.dtype), return_dict=False)[0]

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        ids = self.pipeline._prepare_text_ids(condition.parts[0]), self.pipeline._prepare_latent_ids(self._patches(latents))
        return {"txt_ids": ids[0].to(latents.device), "img_ids": ids[1].to(latents.device)}


class Flux2KleinPolicy(Flux2Policy):
    """A Flux2KleinPipeline as a policy; its base models take true guidance, its distilled ones none."""

    pipeline_class = "Flux2KleinPipeline"
    guidance_kind = "true CFG"
