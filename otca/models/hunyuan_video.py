"""HunyuanVideo-1.5: drives any HunyuanVideo15Pipeline (text to video); encoding and decoding are diffusers' own."""

from __future__ import annotations

import torch

from otca.models.pipeline import Encoded, Policy
from otca.models.texts import Parts


class HunyuanVideoPolicy(Policy):
    """A HunyuanVideo15Pipeline as a policy; latents (B, C, 1 + (frames − 1)/4, height/16, width/16).

    Encoded prompts: features of the vision-language model (L, D) and their mask (L), those of the quoted text by ByT5 (256, D)
    and their mask. Guidance is the checkpoint's own guider's where the settings leave it open.
    """

    pipeline_class = "HunyuanVideo15Pipeline"
    longest_text = 1000
    text_outputs = (0, 1, 2, 3)
    guidance_kind = "true CFG, the guider's scale"
    is_video = True
    latents_a_token = 1

    def _decoded(self, grid_BCFHW: torch.Tensor) -> torch.Tensor:
        self.pipeline.vae.enable_slicing()  # its attention mask is made for one sample
        return super()._decoded(grid_BCFHW)

    def _own_guidance(self) -> float:
        return float(self.pipeline.guider.config.get("guidance_scale", 1.0))

    def _side(self) -> int:
        return self._compression()[1] * self.pipeline.transformer.config.patch_size

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        return self.pipeline.transformer.config.out_channels, frames, height, width

    def _encode_text(self, pipeline, text: str) -> Parts:
        pipeline.tokenizer_max_length = self.max_sequence_length
        return super()._encode_text(pipeline, text)

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        length, glyphs = self.max_sequence_length, self.pipeline.tokenizer_2_max_length
        sizes = self.pipeline.transformer.config
        return (length, sizes.text_embed_dim), (length,), (glyphs, sizes.text_embed_2_dim), (glyphs,)

    def _inputs(self, latents, sigma_B, condition: Encoded, expert: int) -> dict[str, object]:
        _, mask_BL, glyph_BLD, glyph_mask_BL = condition.parts
        latents, sizes = latents.to(self.dtype), self.pipeline.transformer.config
        no_frame = torch.zeros_like(latents), torch.zeros_like(latents[:, :1])  # no first frame is given, and none is masked
        image = latents.new_zeros(len(latents), self.pipeline.vision_num_semantic_tokens, sizes.image_embed_dim)
        glyphs = {"encoder_hidden_states_2": glyph_BLD, "encoder_attention_mask_2": glyph_mask_BL}
        given = {"hidden_states": torch.cat([latents, *no_frame], dim=1), "encoder_attention_mask": mask_BL}
        return given | glyphs | {"image_embeds": image}
