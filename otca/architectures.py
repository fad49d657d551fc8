"""Architectures of published checkpoints, as their own config files state them: what a run needs is known before a download.

Each entry is ``component: (library, class, config)``; what a config leaves out is the class's default. Sources: the
``config.json`` files of the repositories named, on the Hugging Face hub.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from otca.errors import InputError
from otca.untrusted import read_object

CLIP_L = ("transformers", "CLIPTextModel", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12})
T5_XXL = (
    "transformers",
    "T5EncoderModel",
    {
        **{"vocab_size": 32128, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24, "num_heads": 64},
        **{"feed_forward_proj": "gated-gelu", "is_encoder_decoder": False},
    },
)
UMT5_XXL = ("transformers", "UMT5EncoderModel", T5_XXL[2] | {"vocab_size": 256384})
CLIP_L_PROJECTED = ("transformers", "CLIPTextModelWithProjection", CLIP_L[2] | {"projection_dim": 768})
CLIP_G = (
    "transformers",
    "CLIPTextModelWithProjection",
    {
        **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
        **{"projection_dim": 1280, "hidden_act": "gelu"},
    },
)
IMAGE_VAE = (
    "diffusers",
    "AutoencoderKL",
    {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 16,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
)
FLUX_VAE = (*IMAGE_VAE[:2], IMAGE_VAE[2] | {"sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159})
SD3_VAE = (*IMAGE_VAE[:2], IMAGE_VAE[2] | {"sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609})
FLOW_MATCHING = ("diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0})


def _sd3(layers: int, heads: int, dual: int, positions: int) -> dict:
    transformer = {
        **{"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": layers},
        **{"attention_head_dim": 64, "num_attention_heads": heads, "caption_projection_dim": 64 * heads},
        **{"joint_attention_dim": 4096, "pooled_projection_dim": 2048, "pos_embed_max_size": positions},
        **{"dual_attention_layers": list(range(dual)), "qk_norm": "rms_norm"},
    }
    return {
        "pipeline": "StableDiffusion3Pipeline",
        "transformer": ("diffusers", "SD3Transformer2DModel", transformer),
        "vae": SD3_VAE,
        "text_encoder": CLIP_L_PROJECTED,
        "text_encoder_2": CLIP_G,
        "text_encoder_3": T5_XXL,
        "scheduler": FLOW_MATCHING,
    }


def _wan(heads: int, ffn: int, layers: int, experts: int = 1, shift: float = 3.0) -> dict:
    one = ("diffusers", "WanTransformer3DModel", {"num_attention_heads": heads, "ffn_dim": ffn, "num_layers": layers})
    return {
        "pipeline": "WanPipeline",
        "transformer": one,
        **({"transformer_2": one, "boundary_ratio": 0.875} if experts == 2 else {}),
        "vae": ("diffusers", "AutoencoderKLWan", {}),
        "text_encoder": UMT5_XXL,
        "scheduler": ("diffusers", "UniPCMultistepScheduler", {"prediction_type": "flow_prediction", "flow_shift": shift}),
    }


QWEN25_VL_7B = {
    **{"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
    **{"num_attention_heads": 28, "num_key_value_heads": 4},
}
QWEN25_VISION = {"hidden_size": 1280, "out_hidden_size": 3584, "intermediate_size": 3420, "num_heads": 16, "depth": 32}
QWEN3 = {
    **{"vocab_size": 151936, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    **{"hidden_size": 2560, "intermediate_size": 9728},
}
MISTRAL_24B = {
    **{"model_type": "mistral", "vocab_size": 131072, "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
}
GEMMA3_12B = {
    **{"vocab_size": 262208, "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48},
    **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256},
}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16, "image_size": 896}


def _dynamic(**config) -> tuple:
    return (*FLOW_MATCHING[:2], {"use_dynamic_shifting": True} | config)


def _flux2(transformer: dict, text_encoder: tuple, pipeline: str) -> dict:
    return {
        "pipeline": pipeline,
        "transformer": ("diffusers", "Flux2Transformer2DModel", transformer),
        "vae": ("diffusers", "AutoencoderKLFlux2", {}),
        "text_encoder": text_encoder,
        "scheduler": _dynamic(shift=3.0),
    }


NEWER: dict[str, dict] = {
    "black-forest-labs/FLUX.2-dev": _flux2(
        {}, ("transformers", "Mistral3ForConditionalGeneration", {"text_config": MISTRAL_24B}), "Flux2Pipeline"
    ),
    "black-forest-labs/FLUX.2-klein-base-4B": _flux2(
        {
            **{"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
            **{"guidance_embeds": False},
        },
        ("transformers", "Qwen3ForCausalLM", QWEN3),
        "Flux2KleinPipeline",
    ),
    "Qwen/Qwen-Image": {
        "pipeline": "QwenImagePipeline",
        "transformer": ("diffusers", "QwenImageTransformer2DModel", {}),
        "vae": ("diffusers", "AutoencoderKLQwenImage", {}),
        "text_encoder": (
            "transformers",
            "Qwen2_5_VLForConditionalGeneration",
            {"text_config": QWEN25_VL_7B, "vision_config": QWEN25_VISION},
        ),
        "scheduler": _dynamic(base_shift=0.5, max_shift=0.9, base_image_seq_len=256, max_image_seq_len=8192),
    },
    "Tongyi-MAI/Z-Image": {
        "pipeline": "ZImagePipeline",
        "transformer": ("diffusers", "ZImageTransformer2DModel", {}),
        "vae": FLUX_VAE,
        "text_encoder": ("transformers", "Qwen3Model", QWEN3),
        "scheduler": (*FLOW_MATCHING[:2], {"shift": 6.0}),
    },
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _wan(heads=24, ffn=14336, layers=30, shift=5.0)
    | {
        "transformer": (
            "diffusers",
            "WanTransformer3DModel",
            {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
        ),
        "vae": (
            "diffusers",
            "AutoencoderKLWan",
            {
                **{"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12},
                **{"out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16},
                **{"latents_mean": [0.0] * 48, "latents_std": [1.0] * 48},  # shapes alone
            },
        ),
        "expand_timesteps": True,
    },
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": {
        "pipeline": "HunyuanVideo15Pipeline",
        "transformer": ("diffusers", "HunyuanVideo15Transformer3DModel", {"task_type": "t2v"}),
        "vae": ("diffusers", "AutoencoderKLHunyuanVideo15", {}),
        "text_encoder": ("transformers", "Qwen2_5_VLTextModel", QWEN25_VL_7B),
        "text_encoder_2": (
            *T5_XXL[:2],
            T5_XXL[2] | {"vocab_size": 1510, "d_model": 1472, "d_ff": 3584, "num_layers": 12, "num_heads": 6},
        ),
        "scheduler": (*FLOW_MATCHING[:2], {"shift": 5.0}),
        "guider": ("diffusers", "ClassifierFreeGuidance", {"guidance_scale": 6.0}),
    },
    "Lightricks/LTX-2": {
        "pipeline": "LTX2Pipeline",
        "transformer": ("diffusers", "LTX2VideoTransformer3DModel", {}),
        "vae": ("diffusers", "AutoencoderKLLTX2Video", {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}),
        "audio_vae": ("diffusers", "AutoencoderKLLTX2Audio", {}),
        "text_encoder": ("transformers", "Gemma3ForConditionalGeneration", {"text_config": GEMMA3_12B, "vision_config": SIGLIP}),
        "connectors": ("ltx2", "LTX2TextConnectors", {}),
        "vocoder": ("ltx2", "LTX2Vocoder", {}),
        "scheduler": _dynamic(base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, max_image_seq_len=4096),
    },
}
"""Families beyond FLUX.1, SD3.5 and Wan's text-to-video models."""

PUBLISHED: dict[str, dict] = NEWER | {
    "black-forest-labs/FLUX.1-dev": {
        "pipeline": "FluxPipeline",
        "transformer": ("diffusers", "FluxTransformer2DModel", {"guidance_embeds": True}),
        "vae": FLUX_VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "scheduler": (*FLOW_MATCHING[:2], {"shift": 3.0, "use_dynamic_shifting": True}),
    },
    "stabilityai/stable-diffusion-3.5-medium": _sd3(layers=24, heads=24, dual=13, positions=384),
    "stabilityai/stable-diffusion-3.5-large": _sd3(layers=38, heads=38, dual=0, positions=192),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(heads=12, ffn=8960, layers=30),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(heads=40, ffn=13824, layers=40, shift=5.0),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _wan(heads=40, ffn=13824, layers=40, experts=2),
}
"""Hub id → its components."""


OPTIONS = ("boundary_ratio", "expand_timesteps", "is_distilled")
"""Settings of a pipeline that are no components."""


def pipeline_class(path: str) -> str:
    """Name of the pipeline of a local folder or a published checkpoint."""
    if path in PUBLISHED:
        return PUBLISHED[path]["pipeline"]
    return _index(path)["_class_name"]


def empty_pipeline(path: str, dtypes: dict[str, torch.dtype], without: tuple[str, ...] = ()):
    """The pipeline with every network on the meta device: shapes and dtypes, no weights and no tokenizers.

    ``dtypes``: by component, "default" for the others. Raises InputError for a hub id whose architecture is not known here.
    """
    import diffusers

    loader = getattr(diffusers, pipeline_class(path))
    parts = PUBLISHED[path] if path in PUBLISHED else _read(path)
    made: dict[str, object] = {}
    for name, part in parts.items():
        if not isinstance(part, tuple) or name in without:
            continue
        made[name] = _build(*part, dtypes.get(name, dtypes["default"]))
    expected, _ = loader._get_signature_keys(loader)
    optional = {name: parts[name] for name in OPTIONS if name in parts}
    return loader(**{name: made.get(name) for name in sorted(expected)}, **optional)


def _build(library: str, name: str, config: dict, dtype: torch.dtype):
    kind = getattr(
        importlib.import_module(library if library in ("diffusers", "transformers") else f"diffusers.pipelines.{library}"), name
    )
    if not issubclass(kind, nn.Module):
        return kind.from_config(config)
    former = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            built = kind(kind.config_class(**config)) if library == "transformers" else kind.from_config(config)
    finally:
        torch.set_default_dtype(former)
    return built


def _index(path: str) -> dict:
    index = Path(path) / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"policy.path {path}: its architecture is not known; give a local pipeline folder or one of {', '.join(PUBLISHED)}"
        )
    return read_object(index, f"policy.path {path}")


def _read(path: str) -> dict:
    """Components of a local pipeline folder, tokenizers left out."""
    out = {}
    index = _index(path)
    for name, value in index.items():
        if name in OPTIONS and value is not None:
            out[name] = value
        if not isinstance(value, list) or len(value) != 2 or value[0] is None or "tokenizer" in name or name == "processor":
            continue
        library, kind = value
        if library not in ("diffusers", "transformers", "ltx2"):
            raise InputError(f"policy.path {path}: its {name} is of the library {library!r}, of which nothing is built")
        file = Path(path) / name / (f"{name}_config.json" if name in ("scheduler", "guider") else "config.json")
        config = read_object(file, f"policy.path {path}")
        out[name] = (library, kind, {key: v for key, v in config.items() if not key.startswith("_")})
    return out
