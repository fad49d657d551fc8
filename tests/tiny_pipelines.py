"""A small random pipeline of each family, of the same classes and file layout as the published one: ``build(family)``."""

from __future__ import annotations

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from otca.tasks import architecture
from otca.tasks.scenes import vocabulary

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|video_pad|>", "[IMG]"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ c['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHIFT = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}
TEXT = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    **{"vocab_size": 256 + len(SPECIAL), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
SMALL = {"num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2}
MROPE = {"rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}, "rope_theta": 1e4}


def byte_tokenizer(length: int = 4096, side: str = "right") -> transformers.PreTrainedTokenizerFast:
    """A token a byte, with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *alphabet])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=length, padding_side=side, chat_template=CHAT
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return fast


def euler(**config) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def image_vae(kind=diffusers.AutoencoderKL, channels: int = 4, **config):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return kind(
        latent_channels=channels, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, **blocks, **config
    )


def flux2(dev: bool = True):
    shapes = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    transformer = diffusers.Flux2Transformer2DModel(
        **shapes, joint_attention_dim=48, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=dev
    )
    vae = image_vae(diffusers.AutoencoderKLFlux2)
    vae.bn.running_mean.normal_(), vae.bn.running_var.uniform_(0.5, 2)
    parts = {"transformer": transformer, "vae": vae, "scheduler": euler(**SHIFT)}
    if not dev:
        text_encoder = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT, num_hidden_layers=27))
        return diffusers.Flux2KleinPipeline(**parts, text_encoder=text_encoder, tokenizer=byte_tokenizer())
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Mistral3Config(
        text_config=TEXT | {"num_hidden_layers": 30, "model_type": "mistral"},
        vision_config=vision | {"model_type": "pixtral", "patch_size": 14, "head_dim": 8},
        image_token_index=SPECIAL.index("[IMG]"),
    )
    processor = transformers.PixtralProcessor(
        transformers.PixtralImageProcessor(), byte_tokenizer(), image_token="[IMG]", chat_template=CHAT
    )
    text_encoder = transformers.Mistral3ForConditionalGeneration(config)
    return diffusers.Flux2Pipeline(**parts, text_encoder=text_encoder, tokenizer=processor)


def qwen_vision(**more) -> dict:
    return {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16} | more


def causal_vae(kind, channels: int = 4, **config):
    statistics = {"latents_mean": [0.1 * i for i in range(channels)], "latents_std": [1 + 0.1 * i for i in range(channels)]}
    return kind(base_dim=4, z_dim=channels, num_res_blocks=1, **statistics, **config)


def qwen_image():
    config = transformers.Qwen2_5_VLConfig(
        text_config=TEXT | MROPE | {"num_hidden_layers": 2}, vision_config=qwen_vision(fullatt_block_indexes=[0])
    )
    return diffusers.QwenImagePipeline(
        scheduler=euler(**SHIFT),
        vae=causal_vae(diffusers.AutoencoderKLQwenImage, dim_mult=[1, 1, 1, 1]),
        text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.QwenImageTransformer2DModel(
            **SMALL, in_channels=16, out_channels=4, joint_attention_dim=16, axes_dims_rope=(4, 6, 6)
        ),
    )


def qwen_image_21():
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | MROPE | {"num_hidden_layers": 2},
        vision_config=qwen_vision(deepstack_visual_indexes=[0]),
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
    )
    processor = transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(), byte_tokenizer(), transformers.Qwen3VLVideoProcessor(), chat_template=CHAT
    )
    return diffusers.QwenImage21Pipeline(
        scheduler=euler(**SHIFT),
        vae=causal_vae(diffusers.AutoencoderKLQwenImage21, decoder_base_dim=4, dim_mult=[1, 1, 1, 1, 1]),
        text_encoder=transformers.Qwen3VLForConditionalGeneration(config),
        processor=processor,
        transformer=diffusers.QwenImage21Transformer2DModel(
            **SMALL, in_channels=4, out_channels=4, context_in_dim=16, axes_dims_rope=(4, 6, 6)
        ),
    )


def z_image():
    sizes = {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 16}
    return diffusers.ZImagePipeline(
        scheduler=euler(shift=3.0),
        vae=image_vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**TEXT, num_hidden_layers=2)),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.ZImageTransformer2DModel(**sizes, in_channels=4, axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64]),
    )


def t5(kind=transformers.T5EncoderModel, config=transformers.T5Config, size: int = 384):
    return kind(config(vocab_size=size, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"))


def wan_5b():
    pixels = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16, "is_residual": True}
    return diffusers.WanPipeline(
        tokenizer=byte_tokenizer(),
        text_encoder=t5(transformers.UMT5EncoderModel, transformers.UMT5Config),
        vae=causal_vae(diffusers.AutoencoderKLWan, 8, decoder_base_dim=4, dim_mult=[1, 1, 1, 1], **pixels),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
        transformer=diffusers.WanTransformer3DModel(**SMALL, in_channels=8, out_channels=8, ffn_dim=32, text_dim=16, freq_dim=16),
        expand_timesteps=True,
    )


def hunyuan_video():
    config = transformers.Qwen2_5_VLTextConfig(**TEXT, **MROPE, num_hidden_layers=3)
    widths = {"text_embed_dim": 16, "text_embed_2_dim": 16, "image_embed_dim": 16}
    return diffusers.HunyuanVideo15Pipeline(
        text_encoder=transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.Qwen2_5_VLTextModel(config),
        tokenizer=byte_tokenizer(),
        transformer=diffusers.HunyuanVideo15Transformer3DModel(
            **SMALL, **widths, in_channels=9, out_channels=4, num_refiner_layers=1, rope_axes_dim=(4, 6, 6), task_type="t2v"
        ),
        vae=diffusers.AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(32, 32, 32, 32, 32), layers_per_block=1),
        scheduler=euler(shift=7.0),
        text_encoder_2=t5(),
        tokenizer_2=transformers.ByT5Tokenizer(),
        guider=diffusers.ClassifierFreeGuidance(guidance_scale=3.0),
    )


def ltx2():
    text = TEXT | {"num_hidden_layers": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision | {"patch_size": 14}, mm_tokens_per_image=4)
    heads = {"video_connector_num_attention_heads": 2, "video_connector_attention_head_dim": 8}
    heads |= {name.replace("video", "audio"): value for name, value in heads.items()}
    for kind in ("video", "audio"):
        heads |= {f"{kind}_connector_num_learnable_registers": None, f"{kind}_connector_num_layers": 1}
    channels = {"in_channels": 8, "out_channels": 8, "audio_in_channels": 8, "audio_out_channels": 8, "caption_channels": 16}
    widths = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16}
    audio = {"audio_num_attention_heads": 2, "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8}
    upsampling = {"upsample_kernel_sizes": [4, 4], "upsample_factors": [2, 2]}
    return diffusers.LTX2Pipeline(
        scheduler=euler(**SHIFT),
        vae=diffusers.AutoencoderKLLTX2Video(
            latent_channels=8,
            block_out_channels=(8, 16, 32, 64),
            decoder_block_out_channels=(8, 16, 32),
            layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 4,
            spatial_compression_ratio=32,
            temporal_compression_ratio=8,
        ),
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=8, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=2, mel_bins=16, resolution=32
        ),
        text_encoder=transformers.Gemma3ForConditionalGeneration(config),
        tokenizer=byte_tokenizer(side="left"),
        connectors=diffusers.pipelines.ltx2.LTX2TextConnectors(caption_channels=16, text_proj_in_factor=3, **heads),
        transformer=diffusers.LTX2VideoTransformer3DModel(**channels, **widths, **audio),
        vocoder=diffusers.pipelines.ltx2.LTX2Vocoder(
            in_channels=32, hidden_channels=8, resnet_kernel_sizes=[3], resnet_dilations=[[1]], **upsampling
        ),
    )


def sd3():
    tokenizer = architecture.build_tokenizer(vocabulary(), 12)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    tokens = {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    tokens |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    clips = [transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes, **tokens)) for _ in range(2)]
    sizes = {"sample_size": 8, "pos_embed_max_size": 8, "joint_attention_dim": 64, "caption_projection_dim": 32}
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            **SMALL, **sizes, pooled_projection_dim=32, dual_attention_layers=(0,), qk_norm="rms_norm"
        ),
        scheduler=euler(shift=3.0),
        vae=image_vae(channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clips[0],
        tokenizer=tokenizer,
        text_encoder_2=clips[1],
        tokenizer_2=tokenizer,
        text_encoder_3=transformers.T5EncoderModel(
            transformers.T5Config(**architecture.t5_sizes(len(tokenizer), width=64, layers=2))
        ),
        tokenizer_3=tokenizer,
    )


def wan(experts: bool = False):
    """The embedded video pipeline, but patched as Wan is: any number of frames will do."""
    pipeline = architecture.build_video_pipeline()
    config = dict(pipeline.transformer.config) | {"patch_size": (1, 2, 2)}
    pipeline.register_modules(transformer=diffusers.WanTransformer3DModel.from_config(config))
    if experts:
        pipeline.register_modules(transformer_2=diffusers.WanTransformer3DModel.from_config(config))
        pipeline.register_to_config(boundary_ratio=0.875)
    return pipeline


BUILD = {
    "flux": architecture.build_pipeline,
    "sd3": sd3,
    "wan": wan,
    "wan_experts": lambda: wan(experts=True),
    "flux2": flux2,
    "flux2_klein": lambda: flux2(dev=False),
    "qwen_image": qwen_image,
    "qwen_image_21": qwen_image_21,
    "z_image": z_image,
    "wan_5b": wan_5b,
    "hunyuan_video": hunyuan_video,
    "ltx2": ltx2,
}


def build(name: str):
    """The pipeline, always with the same weights."""
    torch.manual_seed(0)
    return BUILD[name]()
