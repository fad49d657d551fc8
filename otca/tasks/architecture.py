"""The untrained parts of the embedded FluxPipeline and WanPipeline, built from diffusers and transformers classes alone."""

from __future__ import annotations

from otca.tasks import scenes, video_scenes

MAX_SEQUENCE_LENGTH = 8
"""Text tokens a caption is padded to (the longest caption has 7 words, plus the end token)."""

LATENT_CHANNELS = 8
"""128 latent numbers a picture: exploration noise lives in as many dimensions, and samples needed grow with them."""
TEXT_WIDTH = 48

VIDEO_SEQUENCE_LENGTH = 12
"""Text tokens a caption is padded to (the longest caption has 10 words, plus the end token)."""
VIDEO_CHANNELS = 4
"""192 latent numbers a clip: three latent frames of 4×4 cells."""


def build_vae():
    """AutoencoderKL, 16× down to 4×4×8, 0.5 M parameters."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENT_CHANNELS,
        block_out_channels=(8, 16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def build_transformer():
    """FluxTransformer2DModel, 0.6 M parameters, 4 image tokens of 2×2 packed latents."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )


def build_tokenizer(vocabulary: list[str], max_length: int):
    """Word-level tokenizer over the captions' words; serves every text encoder's slot."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *vocabulary]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_length
    )


def t5_sizes(vocabulary_size: int, width: int, layers: int) -> dict:
    """Settings of a T5 (or UMT5) encoder, without dropout."""
    return dict(
        vocab_size=vocabulary_size,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        feed_forward_proj="gated-gelu",
    )


def build_text_encoders(vocabulary_size: int):
    """A CLIP text model (pooled vector) and a T5 encoder (token features), one layer each."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=MAX_SEQUENCE_LENGTH,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    t5 = T5EncoderModel(T5Config(**t5_sizes(vocabulary_size, TEXT_WIDTH, layers=1)))
    return clip, t5


def build_pipeline(vae=None):
    """An untrained FluxPipeline of embedded size (around a given autoencoder, if any)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    tokenizer = build_tokenizer(scenes.vocabulary(), MAX_SEQUENCE_LENGTH)
    clip, t5 = build_text_encoders(len(tokenizer))
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae or build_vae(),
        text_encoder=clip,
        tokenizer=tokenizer,
        text_encoder_2=t5,
        tokenizer_2=tokenizer,
        transformer=build_transformer(),
    )


# ---------------------------------------------------------------------------------------------------------------- video


def build_video_vae():
    """AutoencoderKLWan, causal, 9 frames of 64×64 down to 3×4×4×4, 1.2 M parameters; its latents are codes as they are.

    The decoder is wide where it moves objects from the cell of their code to where they are, in 4×4 features.
    """
    from diffusers import AutoencoderKLWan

    patch = 4
    return AutoencoderKLWan(
        base_dim=10,
        decoder_base_dim=14,
        z_dim=VIDEO_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * VIDEO_CHANNELS,
        latents_std=[1.0] * VIDEO_CHANNELS,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        patch_size=patch,
        scale_factor_spatial=4 * patch,
    )


def build_video_transformer():
    """WanTransformer3DModel, 0.6 M parameters, 16 tokens of 3×1×1 latents: a cell through all of the clip."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(3, 1, 1),
        num_attention_heads=8,
        attention_head_dim=12,
        in_channels=VIDEO_CHANNELS,
        out_channels=VIDEO_CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=256,
        num_layers=4,
        rope_max_seq_len=8,
    )


def build_video_pipeline(vae=None):
    """An untrained WanPipeline of embedded size (around a given autoencoder, if any)."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = build_tokenizer(video_scenes.vocabulary(), VIDEO_SEQUENCE_LENGTH)
    return WanPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae or build_video_vae(),
        text_encoder=UMT5EncoderModel(UMT5Config(**t5_sizes(len(tokenizer), TEXT_WIDTH, layers=2))),
        tokenizer=tokenizer,
        transformer=build_video_transformer(),
    )
