"""LTX-2: drives any LTX2Pipeline for its video; the audio is denoised along and otherwise untouched."""

from __future__ import annotations

import torch

from otca.models.pipeline import Encoded, Policy
from otca.models.texts import Parts

FRAME_RATE = 24.0
"""Frames a second, LTX2Pipeline's own default: how much audio belongs to the frames."""


class Ltx2Policy(Policy):
    """An LTX2Pipeline as a policy; latents (B, N + M, C): N video tokens, then the M audio tokens that they attend to.

    The audio is never decoded, scored or adapted: a LoRA is of the video's own attention, and media are the frames alone.
    Encoded prompts: the connectors' features for video and audio (L, D), and their mask (L). Guidance is classifier-free alone,
    for video and audio alike: without the pipeline's perturbed passes and its rescaling.
    """

    pipeline_class = "LTX2Pipeline"
    lora_targets = tuple(
        f"{attention}.{name}" for attention in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")
    )
    longest_text = 1024
    text_outputs = (0, 1)
    is_video = True

    def _compression(self) -> tuple[int, int]:
        return self.pipeline.vae_temporal_compression_ratio, self.pipeline.vae_spatial_compression_ratio

    def _side(self) -> int:
        return max(32, self._compression()[1] * self.pipeline.transformer.config.patch_size)

    def _latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        pipeline = self.pipeline
        rate = pipeline.audio_sampling_rate / pipeline.audio_hop_length / pipeline.audio_vae_temporal_compression_ratio
        audio = pipeline.audio_vae.config
        self.audio_length = round(self.frames / FRAME_RATE * rate)
        self.audio_shape = audio.latent_channels, self.audio_length, audio.mel_bins // pipeline.audio_vae_mel_compression_ratio
        return super()._latent_shape(frames, height, width)

    @property
    def latents_a_token(self) -> int:
        sizes = self.pipeline.transformer.config
        return sizes.patch_size_t * sizes.patch_size**2

    def _encode_text(self, pipeline, text: str) -> Parts:
        prompt, mask = (part.unsqueeze(0) for part in super()._encode_text(pipeline, text))
        return tuple(part[0] for part in pipeline.connectors(prompt, mask, padding_side=pipeline.tokenizer.padding_side))

    def text_shapes(self) -> tuple[tuple[int, ...], ...]:
        sizes, length = self.pipeline.transformer.config, self.max_sequence_length
        widths = sizes.cross_attention_dim, sizes.audio_cross_attention_dim
        video, audio = (sizes.caption_channels,) * 2 if sizes.use_prompt_embeddings else widths
        return (length, video), (length, audio), (length,)

    def noise(self, generators: list[torch.Generator]) -> torch.Tensor:
        """Standard normal tokens of video, then of audio, row b from generator b."""
        audio = [torch.randn((1, *self.audio_shape), generator=g, device=g.device) for g in generators]
        return torch.cat([super().noise(generators), self.pipeline._pack_audio_latents(torch.cat(audio)).to(self.device)], dim=1)

    def _pack(self, latents: torch.Tensor) -> torch.Tensor:
        sizes = self.pipeline.transformer.config
        return self.pipeline._pack_latents(latents, sizes.patch_size, sizes.patch_size_t)

    def latent_grid(self, latents) -> torch.Tensor:
        """Latents of the video (B, C, F, H, W)."""
        sizes = self.pipeline.transformer.config
        tokens = latents[:, : self._tokens()]
        return self.pipeline._unpack_latents(tokens, *self.latent_shape[1:], sizes.patch_size, sizes.patch_size_t)

    def _decoded(self, grid_BCFHW: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        raw = self.pipeline._denormalize_latents(grid_BCFHW, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        time = raw.new_zeros(len(raw), dtype=vae.dtype) if vae.config.timestep_conditioning else None
        return vae.decode(raw.to(vae.dtype), time, return_dict=False)[0]

    def _forward(self, latents, sigma_B, condition: Encoded, expert: int) -> torch.Tensor:
        prompt_BLD, audio_prompt_BLD, mask_BL = condition.parts
        video, audio = latents.to(self.dtype).split([self._tokens(), self.audio_length], dim=1)
        _, frames, height, width = self.latent_shape
        timestep = sigma_B * self.pipeline.scheduler.config.num_train_timesteps
        out = self.network(
            hidden_states=video,
            audio_hidden_states=audio,
            encoder_hidden_states=prompt_BLD,
            audio_encoder_hidden_states=audio_prompt_BLD,
            timestep=timestep,
            sigma=timestep,
            encoder_attention_mask=mask_BL,
            audio_encoder_attention_mask=mask_BL,
            num_frames=frames,
            height=height,
            width=width,
            fps=FRAME_RATE,
            audio_num_frames=self.audio_length,
            use_cross_timestep=True,
            return_dict=False,
        )
        return torch.cat(out, dim=1)
