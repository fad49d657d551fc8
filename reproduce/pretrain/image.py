"""Stages of the embedded image checkpoints; `reproduce/pretrain_embedded.py` runs them in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from otca.tasks.architecture import MAX_SEQUENCE_LENGTH
from reproduce.pretrain.publish import publish

VAE_STEPS = 8000
FLOW_STEPS, FLOW_DECAY_FROM = 18000, 12000
JUDGE_STEPS = 3000
CLIP_STEPS = 4000
DISTILL_STEPS = 2500
GUIDANCE = 2.5
"""Classifier-free guidance that the shipped model is distilled from (`pretrain-image.json` has what it buys)."""


def run_vae(folder: Path) -> None:
    """Train the autoencoder and save it as `folder/vae/`."""
    from reproduce.pretrain.vae import peak_signal_to_noise, pretrain_vae

    vae = pretrain_vae(folder, VAE_STEPS)
    vae.save_pretrained(folder / "vae")
    print(f"vae: {peak_signal_to_noise(vae):.2f} dB on fresh scenes")


def run_flow(folder: Path) -> None:
    """Train transformer and text encoders on the autoencoder's latents and save `folder/teacher/`."""
    from diffusers import AutoencoderKL

    from otca.tasks.architecture import build_pipeline
    from reproduce.pretrain.flow import pretrain_flow
    from reproduce.pretrain.image_flow import image_bank, image_network

    torch.manual_seed(1)
    pipeline = build_pipeline(AutoencoderKL.from_pretrained(folder / "vae").eval())
    modules = {"transformer": pipeline.transformer, "clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2}
    pretrain_flow(modules, image_network(pipeline), image_bank(pipeline, folder), folder, FLOW_STEPS, FLOW_DECAY_FROM)
    pipeline.save_pretrained(folder / "teacher")


def run_distill(folder: Path) -> None:
    """Distil the teacher's guidance into one pass and save `folder/pipeline/`."""
    from diffusers import FluxPipeline

    from reproduce.pretrain.flow import distill_guidance
    from reproduce.pretrain.image_flow import image_bank, image_network

    teacher = FluxPipeline.from_pretrained(folder / "teacher", local_files_only=True)
    student = distill_guidance(teacher, image_network, image_bank(teacher, folder), folder, GUIDANCE, DISTILL_STEPS)
    student.save_pretrained(folder / "pipeline")


def run_judge(folder: Path) -> None:
    """Train the held-out judge, half of its images through the autoencoder, and save `folder/judge/`."""
    from diffusers import AutoencoderKL

    from reproduce.pretrain.judge import KINDS, judge_accuracy, pretrain_judge

    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    judge = pretrain_judge(folder, JUDGE_STEPS, vae)
    judge.save_pretrained(folder / "judge")
    for kind in KINDS:
        print(f"judge, {kind}: {judge_accuracy(judge, 1200, kind, vae)}")


def run_clip(folder: Path) -> None:
    """Train the held-out open_clip model and save `folder/clip/`."""
    from diffusers import AutoencoderKL

    from reproduce.pretrain.clip import pretrain_clip, retrieval_accuracy

    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    clip = pretrain_clip(folder, CLIP_STEPS, vae)
    clip.save_pretrained(folder / "clip")
    print(f"clip: {retrieval_accuracy(clip, 1024, vae)}")


def run_publish(folder: Path) -> None:
    """Copy what ships into the package, with its hashes, costs and accuracies."""
    publish(
        folder,
        modality="image",
        models={"pipeline": "image", "judge": "judge", "clip": "clip"},
        notes={"max_sequence_length": MAX_SEQUENCE_LENGTH},
        stages=[name for name in STAGES if name != "publish"],
        accuracies={
            "teacher": ("teacher", 1.0),
            f"teacher, guidance {GUIDANCE:g}": ("teacher", GUIDANCE),
            "distilled": ("pipeline", 1.0),
        },
    )


STAGES: dict[str, Callable[[Path], None]] = {
    "vae": run_vae,
    "flow": run_flow,
    "distill": run_distill,
    "judge": run_judge,
    "clip": run_clip,
    "publish": run_publish,
}
BRANCHES = (("flow", "distill"), ("judge", "clip"))
"""What runs side by side once the autoencoder is there."""
