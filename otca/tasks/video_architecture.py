"""The untrained parts of the embedded WanPipeline, built from diffusers and transformers classes alone."""

from __future__ import annotations

from otca.tasks.architecture import build_tokenizer, t5_sizes
from otca.tasks.video_scenes import vocabulary

MAX_SEQUENCE_LENGTH = 20
"""Text tokens a caption is padded to (the longest caption has 18 words, plus the end token)."""

LATENT_CHANNELS = 12
TEXT_WIDTH = 64


def build_vae(latents_mean: list[float] | None = None, latents_std: list[float] | None = None):
    """AutoencoderKLWan, 0.7 M parameters, causal, 8× down in space and 4× in time; the statistics normalise its latents."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=latents_mean or [0.0] * LATENT_CHANNELS,
        latents_std=latents_std or [1.0] * LATENT_CHANNELS,
    )


def build_transformer():
    """WanTransformer3DModel, about 1 M parameters; 48 tokens of 1×2×2 latents for nine frames of 64×64."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=320,
        num_layers=7,
        rope_max_seq_len=32,
    )


def build_text_encoder(vocabulary_size: int):
    """A UMT5 encoder, two layers of width 64."""
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(UMT5Config(**t5_sizes(vocabulary_size, TEXT_WIDTH, layers=2)))


def build_pipeline(vae):
    """An untrained WanPipeline of embedded size around a given autoencoder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    tokenizer = build_tokenizer(vocabulary(), MAX_SEQUENCE_LENGTH)
    return WanPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=build_text_encoder(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=build_transformer(),
    )
