"""Settings for published models: the paper's as far as they are known, siblings' recipes, and what fits one machine.

Every value bears a mark, as in otca/DEVIATIONS.md: [paper], [reader], [sibling: whose], [ours] (`tests/test_presets.py`).
"""

from __future__ import annotations

LORA = {
    "policy.tuning": "lora",  # [ours]: what fits one GPU
    "policy.lora_rank": 32,  # [sibling: Flow-GRPO]
    "policy.lora_alpha": 64.0,  # [sibling: Flow-GRPO]
    "policy.precision": "bf16",  # [ours]
    "policy.gradient_checkpointing": True,  # [ours]
    "save_every": 20,  # [ours]
}
"""What the presets that train a LoRA have in common."""

FLUX = {
    "prompts": "prompts/dancegrpo_image.txt",  # [reader]: DanceGRPO's list, from HPDv2
    "rewards": ["hpsv2", "clip"],  # [sibling: DanceGRPO's two rewards for images]; the paper's are unknown
    "group_size": 12,  # [sibling: ViPO]
    "policy.path": "black-forest-labs/FLUX.1-dev",  # [reader]
    "policy.height": 512,  # [reader]
    "policy.width": 512,  # [reader]
    "policy.precision": "bf16",  # [sibling: DanceGRPO]
    "sampler.kind": "dance_sde",  # [sibling: ViPO]
    "sampler.level": 0.3,  # [sibling: ViPO]
    "sampler.shift": 3.0,  # [sibling: ViPO]
    "step_selection.kind": "random_fraction",  # [sibling: DanceGRPO, ViPO]
    "step_selection.fraction": 0.6,  # [sibling: DanceGRPO, ViPO]
    "loss.clip_low": 1e-4,  # [sibling: ViPO, DanceGRPO]
    "loss.clip_high": 1e-4,  # [sibling: ViPO, DanceGRPO]
    "save_every": 20,  # [ours]
}
"""FLUX.1-dev in the paper's setting, as far as it is known."""

WAN = {
    "prompts": "prompts/dancegrpo_video.txt",  # [reader]: DanceGRPO's 50,000, from VidProM
    "rewards": ["videoalign_vq", "videoalign_mq"],  # [sibling: ViPO]
    "group_size": 8,  # [sibling: ViPO]
    "micro_batch": 1,  # [ours]
    "policy.precision": "bf16",  # [sibling: DanceGRPO]
    "policy.gradient_checkpointing": True,  # [ours]
    "sampler.kind": "dance_sde",  # [sibling: ViPO]
    "sampler.level": 0.25,  # [sibling: ViPO]
    "step_selection.kind": "random_fraction",  # [sibling: DanceGRPO, ViPO]
    "step_selection.fraction": 0.6,  # [sibling: DanceGRPO, ViPO]
    "loss.clip_low": 1e-4,  # [sibling: ViPO, DanceGRPO]
    "loss.clip_high": 1e-4,  # [sibling: ViPO, DanceGRPO]
    "save_every": 20,  # [ours]
}
"""Wan in the paper's setting, as far as it is known."""

IMAGES_LORA = {
    "iterations": 300,  # [ours]
    "prompts": "prompts/dancegrpo_image.txt",  # [reader]
    "rewards": ["hpsv2", "clip"],  # [sibling: DanceGRPO]
    "prompts_per_iteration": 8,  # [ours]
    "group_size": 8,  # [ours]
    "micro_batch": 2,  # [ours]
    "policy.height": 512,  # [reader]
    "policy.width": 512,  # [reader]
    "policy.prompt_cache": "runs/prompt_cache",  # [ours]
    "sampler.kind": "flow_sde",  # [sibling: Flow-GRPO]
    "sampler.level": 0.7,  # [sibling: Flow-GRPO]
    "sampler.steps": 10,  # [sibling: Flow-GRPO]
    "loss.step_scale": "equal",  # [ours]: late steps otherwise own the gradient
    "loss.clip_low": 1e-4,  # [sibling: Flow-GRPO]
    "loss.clip_high": 1e-4,  # [sibling: Flow-GRPO]
    "optimizer.learning_rate": 1e-4,  # [ours]
}
"""What the presets of newer image models have in common; nothing is published of OTCA on them."""

TRAIN: dict[str, dict[str, object]] = {
    "image/paper": FLUX
    | {
        "iterations": 300,  # [sibling: ViPO]
        "prompts_per_iteration": 32,  # [ours]
        "sampler.steps": 20,  # [reader]
        "optimizer.learning_rate": 1e-5,  # [sibling: ViPO], full tuning
        "optimizer.ema_decay": 0.995,  # [sibling: DanceGRPO's script for 8 GPUs]
        "policy.gradient_checkpointing": True,  # [ours]
        "micro_batch": 4,  # [ours]
    },
    "video/paper": WAN
    | {
        "iterations": 300,  # [ours]
        "prompts_per_iteration": 64,  # [ours]: one prompt a GPU and update on 32
        "policy.path": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",  # [reader]
        "policy.height": 336,  # [reader]
        "policy.width": 592,  # [reader]
        "policy.frames": 53,  # [reader]
        "policy.true_guidance": 4.0,  # [ours]: the high-noise expert's in Wan2.2's own inference
        "policy.true_guidance_2": 3.0,  # [ours]: the low-noise expert's there
        "sampler.steps": 12,  # [reader]
        "sampler.shift": 5.0,  # [sibling: TeleBoost, 14B]
        "optimizer.learning_rate": 2e-6,  # [sibling: TeleBoost, 14B], full tuning
    },
    # Recipes: what fits a smaller machine. Commands and memory: `python -m otca plan --recipes`.
    "image/sd35m-lora": LORA
    | {
        "iterations": 500,  # [ours]
        "prompts": "prompts/dancegrpo_image.txt",  # [reader]
        "rewards": ["hpsv2", "clip"],  # [sibling: DanceGRPO]
        "prompts_per_iteration": 8,  # [ours]
        "group_size": 8,  # [ours]
        "micro_batch": 4,  # [ours]
        "policy.path": "stabilityai/stable-diffusion-3.5-medium",  # [sibling: Flow-GRPO]
        "policy.height": 512,  # [sibling: Flow-GRPO]
        "policy.width": 512,  # [sibling: Flow-GRPO]
        "policy.true_guidance": 4.5,  # [sibling: Flow-GRPO]
        "policy.max_sequence_length": 128,  # [sibling: Flow-GRPO]
        "policy.prompt_cache": "runs/prompt_cache",  # [ours]
        "sampler.steps": 10,  # [sibling: Flow-GRPO]
        "optimizer.learning_rate": 3e-4,  # [sibling: Flow-GRPO]
        "loss.kl_beta": 0.04,  # [sibling: Flow-GRPO]
        "loss.kl_scale": "flow_grpo",  # [sibling: Flow-GRPO]
    },
    "image/flux-lora": FLUX
    | LORA
    | {
        "iterations": 300,  # [sibling: ViPO]
        "prompts_per_iteration": 8,  # [ours]
        "micro_batch": 4,  # [ours]
        "policy.prompt_cache": "runs/prompt_cache",  # [ours]
        "sampler.steps": 10,  # [ours]
        "optimizer.learning_rate": 1e-4,  # [ours]
    },
    "video/wan21-1.3b-lora": WAN
    | LORA
    | {
        "iterations": 300,  # [ours]
        "prompts_per_iteration": 4,  # [ours]
        "policy.path": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",  # [sibling: ViPO]
        "policy.height": 240,  # [sibling: ViPO]
        "policy.width": 416,  # [sibling: ViPO]
        "policy.frames": 53,  # [sibling: ViPO]
        "policy.true_guidance": 5.0,  # [ours]: WanPipeline's default
        "policy.prompt_cache": "runs/prompt_cache",  # [ours]
        "sampler.steps": 16,  # [sibling: ViPO]
        "sampler.shift": 8.0,  # [sibling: ViPO]
        "optimizer.learning_rate": 1e-4,  # [ours]
    },
    "image/qwen-image-lora": LORA
    | IMAGES_LORA
    | {
        "policy.path": "Qwen/Qwen-Image",  # [ours]: the base model, not a distilled one
        "policy.true_guidance": 4.0,  # [ours]: QwenImagePipeline's default
        "sampler.shift": 0.0,  # [ours]: the checkpoint's own
    },
    "image/flux2-klein-lora": LORA
    | IMAGES_LORA
    | {
        "policy.path": "black-forest-labs/FLUX.2-klein-base-4B",  # [ours]: the base model, not a distilled one
        "policy.true_guidance": 4.0,  # [ours]: Flux2KleinPipeline's default
        "sampler.shift": 0.0,  # [ours]: the checkpoint's own
    },
    "image/flux2-dev-lora": LORA
    | IMAGES_LORA
    | {
        "policy.path": "black-forest-labs/FLUX.2-dev",  # [ours]: the base model, not a distilled one
        "policy.guidance": 4.0,  # [ours]: Flux2Pipeline's default
        "policy.true_guidance": 1.0,  # [ours]: its guidance is embedded
        "sampler.shift": 0.0,  # [ours]: the checkpoint's own
    },
    "image/z-image-lora": LORA
    | IMAGES_LORA
    | {
        "policy.path": "Tongyi-MAI/Z-Image",  # [ours]: the base model, not a distilled one
        "policy.true_guidance": 6.0,  # [ours]: ZImagePipeline's default guidance_scale of 5, plus 1
        "sampler.shift": 0.0,  # [ours]: the checkpoint's own
    },
    "video/wan22-5b-lora": WAN
    | LORA
    | {
        "iterations": 300,  # [ours]
        "prompts_per_iteration": 4,  # [ours]
        "policy.path": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",  # [ours]
        "policy.height": 352,  # [ours]
        "policy.width": 640,  # [ours]
        "policy.frames": 49,  # [ours]
        "policy.true_guidance": 5.0,  # [ours]: WanPipeline's default
        "policy.prompt_cache": "runs/prompt_cache",  # [ours]
        "sampler.steps": 16,  # [sibling: ViPO]
        "sampler.shift": 0.0,  # [ours]: the checkpoint's own
        "loss.step_scale": "equal",  # [ours]
        "optimizer.learning_rate": 1e-4,  # [ours]
    },
    "video/hunyuan15-lora": WAN
    | LORA
    | {
        "iterations": 300,  # [ours]
        "prompts_per_iteration": 4,  # [ours]
        "policy.path": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",  # [ours]
        "policy.height": 240,  # [ours]
        "policy.width": 416,  # [ours]
        "policy.frames": 49,  # [ours]
        "policy.true_guidance": 6.0,  # [ours]: its guider's
        "policy.prompt_cache": "runs/prompt_cache",  # [ours]
        "sampler.steps": 16,  # [sibling: ViPO]
        "sampler.shift": 0.0,  # [ours]: the checkpoint's own
        "loss.step_scale": "equal",  # [ours]
        "optimizer.learning_rate": 1e-4,  # [ours]
    },
    "video/ltx2-lora": WAN
    | LORA
    | {
        "iterations": 300,  # [ours]
        "prompts_per_iteration": 4,  # [ours]
        "policy.path": "Lightricks/LTX-2",  # [ours]
        "policy.height": 256,  # [ours]
        "policy.width": 448,  # [ours]
        "policy.frames": 49,  # [ours]
        "policy.true_guidance": 3.0,  # [ours]: LTX2Pipeline's default, for the video
        "policy.prompt_cache": "runs/prompt_cache",  # [ours]
        "sampler.steps": 16,  # [sibling: ViPO]
        "sampler.shift": 0.0,  # [ours]: the checkpoint's own
        "loss.step_scale": "equal",  # [ours]
        "optimizer.learning_rate": 1e-4,  # [ours]
    },
    "video/wan22-recommended": WAN
    | {
        "iterations": 300,  # [ours]
        "prompts_per_iteration": 64,  # [ours]
        "policy.path": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",  # [reader]
        "policy.height": 336,  # [reader]
        "policy.width": 592,  # [reader]
        "policy.frames": 53,  # [reader]
        "policy.true_guidance": 4.0,  # [ours]: the high-noise expert's in Wan2.2's own inference
        "policy.true_guidance_2": 3.0,  # [ours]: the low-noise expert's there
        "sampler.steps": 16,  # [sibling: ViPO, TeleBoost]
        "sampler.shift": 5.0,  # [sibling: TeleBoost, 14B]
        "loss.step_scale": "equal",  # [ours]: at a large shift the time weight nearly vanishes
        "optimizer.learning_rate": 5e-6,  # [sibling: ViPO]: 1e-6 is publicly reported to stay flat
    },
    # One known curve before any other number at scale: Flow-GRPO's published setting (arXiv 2505.05470 and its public
    # config/grpo.py, general_ocr_sd3), with --method flow_grpo. Published: 59 % → 92 % of the test prompts' words right, which
    # `validation.csv` follows here. Not as there: bf16 for fp16, peft's start of a LoRA for a Gaussian one, raw weights judged
    # for averaged ones (its average has decay 0.9 every eighth update), rapidocr for PaddleOCR.
    "validate/sd35m_flow_grpo": LORA
    | {
        "iterations": 2000,  # [ours]: its curves end there
        "prompts": "prompts/flow_grpo_ocr.txt",  # [sibling: Flow-GRPO]
        "rewards": ["ocr"],  # [sibling: Flow-GRPO], by another reader
        "prompts_per_iteration": 48,  # [sibling: Flow-GRPO]
        "group_size": 24,  # [sibling: Flow-GRPO]
        "micro_batch": 8,  # [ours]
        "policy.path": "stabilityai/stable-diffusion-3.5-medium",  # [sibling: Flow-GRPO]
        "policy.height": 512,  # [sibling: Flow-GRPO]
        "policy.width": 512,  # [sibling: Flow-GRPO]
        "policy.true_guidance": 4.5,  # [sibling: Flow-GRPO]
        "policy.max_sequence_length": 128,  # [sibling: Flow-GRPO]
        "sampler.kind": "flow_sde",  # [sibling: Flow-GRPO]
        "sampler.level": 0.7,  # [sibling: Flow-GRPO]
        "sampler.steps": 10,  # [sibling: Flow-GRPO]
        "sampler.shift": 3.0,  # [sibling: Flow-GRPO], the checkpoint's own
        "loss.clip_low": 1e-4,  # [sibling: Flow-GRPO]
        "loss.clip_high": 1e-4,  # [sibling: Flow-GRPO]
        "loss.kl_beta": 0.04,  # [sibling: Flow-GRPO]
        "loss.kl_scale": "flow_grpo",  # [sibling: Flow-GRPO]
        "optimizer.learning_rate": 3e-4,  # [sibling: Flow-GRPO]
        "optimizer.ema_decay": 0.987,  # [sibling: Flow-GRPO], 0.9 every eighth update
        "validation.every": 60,  # [sibling: Flow-GRPO]
        "validation.source": "prompts/flow_grpo_ocr_test.txt",  # [sibling: Flow-GRPO]
        "validation.prompts": 1018,  # [sibling: Flow-GRPO], all of them
        "validation.samples_per_prompt": 1,  # [sibling: Flow-GRPO]
        "validation.steps": 40,  # [sibling: Flow-GRPO]
        "save_every": 60,  # [sibling: Flow-GRPO]
    },
}
