"""Named settings: what a modality and tier change of the defaults, for training and for evaluation.

Order of precedence, lowest first: the dataclass default, the tier, the method's own settings, a YAML file, the command
line. Every value for published models bears a mark, as in otca/DEVIATIONS.md: [paper], [reader], [sibling: whose],
[ours] (`tests/test_presets.py`). The embedded tiers are all [ours].
"""

from __future__ import annotations

from otca.config import TrainConfig
from otca.errors import InputError, nearest
from otca.eval_config import EvalConfig

VIDEO = {"policy.path": "embedded:video", "prompts": "embedded:video/train", "rewards": ["vq", "mq", "ta"]}
"""What every tier of the embedded video task has in common."""

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

IMAGE = {
    "prompts_per_iteration": 8,
    "group_size": 16,
    "micro_batch": 32,
    "sampler.steps": 8,
    "sampler.shift": 3.0,
    "sampler.level": 0.8,
    "loss.step_scale": "equal",
    "loss.kl_beta": 0.03,
    "loss.kl_scale": "flow_grpo",
    "optimizer.learning_rate": 2e-4,
    "optimizer.updates_per_iteration": 1,
    "optimizer.weight_decay": 0.0,
    "optimizer.ema_decay": 0.97,
    "save_every": 20,
}
"""otca-image-v2: 128 samples × 8 steps an iteration, one set for all methods; averaged weights are judged."""

CLIPS = VIDEO | {
    "iterations": 40,
    "prompts_per_iteration": 4,
    "group_size": 8,
    "micro_batch": 16,
    "sampler.steps": 8,
    "sampler.shift": 3.0,
    "optimizer.learning_rate": 2e-4,  # results/tuning
    "save_every": 10,
}
"""The embedded video task: 32 videos × 8 steps an iteration."""

TRAIN: dict[str, dict[str, object]] = {
    # Minutes on two cores [ours].
    "image/quick": IMAGE | {"iterations": 25},
    # Long enough that held-out accuracy rises: the training targets, with few seeds and a large evaluation [ours].
    "image/study": IMAGE | {"iterations": 100},
    # The standardised numbers of the embedded task [ours].
    "image/cpu": IMAGE | {"iterations": 200},
    # A quarter of an hour on two cores: 32 videos × 8 steps × 40 iterations [ours].
    "video/quick": CLIPS,
    # The standardised numbers of the embedded task: the same with two updates an iteration [ours], results/plans/cpu.csv
    "video/cpu": CLIPS | {"optimizer.updates_per_iteration": 2},  # results/tuning/video-quick.csv
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

EVAL: dict[str, dict[str, object]] = {
    "image/quick": {"prompts": 120, "samples_per_prompt": 2, "steps": 8},
    "image/study": {"prompts": 600, "samples_per_prompt": 3, "steps": 8},
    "image/cpu": {"prompts": 600, "samples_per_prompt": 2, "steps": 8},
    "video/quick": {"source": "embedded:video/test", "prompts": 84, "samples_per_prompt": 1},
    "video/cpu": {"source": "embedded:video/test", "prompts": 350, "samples_per_prompt": 1},
    "image/paper": {
        "source": "prompts/parti.tsv",  # [ours]: the paper's 1,000 test prompts are unknown
        "prompts": 1000,  # [reader]
        "choice": "even",  # [ours]: the list is in the order of its categories
        "samples_per_prompt": 1,  # [ours]
        "steps": 50,  # [reader]
        "shift": 3.0,  # [ours], that of training
        "batch": 4,  # [ours]
        "held_out": ["pickscore", "image_reward", "aesthetic_v2"],  # [reader]: Table 4's metrics, those that no arm trains on
    },
    "video/paper": {
        "source": "prompts/vbench.json",  # [ours]
        "prompts": 200,  # [ours]
        "choice": "even",  # [ours]: the list is in the order of its dimensions
        "samples_per_prompt": 1,  # [ours]
        "steps": 50,  # [reader]
        "shift": 12.0,  # [ours]: Wan2.2's own inference
        "batch": 1,  # [ours]
        "height": 480,  # [reader]
        "width": 832,  # [reader]
        "fps": 16.0,  # [ours]: Wan's own rate
        "held_out": ["videoalign_ta", "motion"],  # [ours]
    },
}

SEEDS = {"quick": 2, "study": 3, "cpu": 10, "paper": 1}
"""Paired seeds of the headline arms, fixed before any run."""

FEWER_SEEDS = {"cpu": {"core": 5, "wide": 3}}
"""Seeds of the other arms of Tables 1 to 4, and of the ablations' further arms, where they are fewer."""

_RATES = {
    "video/cpu": {  # results/tuning/video-methods.csv
        **dict.fromkeys(("uniform_grpo", "otca_tcd", "otca_moca", "otca"), 5e-5),  # the lowest of the grid
        "static_multi_reward": 1e-4,
        "process_credit": 2e-4,
    },
}
TUNED: dict[str, dict[str, dict[str, object]]] = {
    name: {method: {"optimizer.learning_rate": rate} for method, rate in rates.items()} for name, rates in _RATES.items()
}
"""modality/tier → method → what it has of its own: chosen for each method from the same grid on tuning seeds (results/tuning)."""


def preset(name: str) -> dict[str, object]:
    """Dotted training settings of ``modality/tier``."""
    return _find(TRAIN, name)


def eval_config(name: str) -> EvalConfig:
    """Evaluation settings of ``modality/tier``."""
    return EvalConfig(**_find(EVAL, name))


def train_config(name: str, method_name: str, method_settings: dict[str, object], seed: int) -> TrainConfig:
    """The config of one arm of a table: tier, then what was tuned for the method, then what the method changes."""
    own = tuned(name, method_name) | method_settings | {"method": method_name, "seed": seed}
    return TrainConfig.from_dotted(_find(TRAIN, name) | own)


def tuned(name: str, method_name: str) -> dict[str, object]:
    """What was chosen for a method at a preset; nothing where all methods share the preset's settings."""
    return TUNED.get(name, {}).get(method_name, {})


def _find(table: dict[str, dict[str, object]], name: str) -> dict[str, object]:
    if name not in table:
        raise InputError(f"unknown preset {name!r}{nearest(name, table)} (known: {', '.join(table)})")
    return table[name]
