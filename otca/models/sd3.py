"""SD3: drives any StableDiffusion3Pipeline, such as SD3.5 medium and large; encoding and decoding are diffusers' own."""

from __future__ import annotations

from otca.errors import InputError
from otca.models.pipeline import Encoded, Policy


class Sd3Policy(Policy):
    """A StableDiffusion3Pipeline as a policy; latents (B, C, height/8, width/8).

    Encoded prompts: CLIP and T5 features, one after the other, (77 + L, D), and the CLIP models' pooled vectors (D).
    SD3.5 is made for classifier-free guidance: set ``policy.true_guidance`` (4.5 in Flow-GRPO's settings).
    """

    pipeline_class = "StableDiffusion3Pipeline"
    longest_text = 256
    text_outputs = (0, 2)

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        transformer = self.pipeline.transformer.config
        longest = transformer.patch_size * transformer.pos_embed_max_size
        if max(height, width) > longest:
            factor = self.pipeline.vae_scale_factor
            size = f"{height * factor} × {width * factor}"
            raise InputError(f"height × width is {size}; {self.config.path} makes {longest * factor} pixels a side at most")
        return super()._latent_shape(frames, height, width)

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        sizes, length = self.pipeline.transformer.config, self.pipeline.tokenizer_max_length + self.max_sequence_length
        return (length, sizes.joint_attention_dim), (sizes.pooled_projection_dim,)

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        return {"pooled_projections": condition.parts[1]}
