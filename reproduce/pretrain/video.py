"""Stages of the embedded video checkpoints; `reproduce/pretrain_embedded.py --video` runs them in order."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch

from otca.files import EMBEDDED
from otca.tasks.video_architecture import MAX_SEQUENCE_LENGTH
from otca.tasks.video_scenes import FRAMES
from reproduce.pretrain.publish import publish

VAE_STEPS, VAE_DECAY_FROM = 7500, 4500
FLOW_STEPS, FLOW_DECAY_FROM = 12000, 8000
GUIDANCE = 2.5
"""Classifier-free guidance that the shipped model does without (`pretrain-video.json` has what it would buy)."""


def run_vae(folder: Path) -> None:
    """Train the causal autoencoder and save it as `folder/vae/`."""
    from reproduce.pretrain.video_vae import peak_signal_to_noise, pretrain_video_vae

    vae = pretrain_video_vae(folder, VAE_STEPS, VAE_DECAY_FROM)
    vae.save_pretrained(folder / "vae")
    print(f"vae: {peak_signal_to_noise(vae):.2f} dB on fresh clips")


def run_flow(folder: Path) -> None:
    """Train transformer and text encoder on the autoencoder's latents and save `folder/pipeline/`."""
    from diffusers import AutoencoderKLWan

    from otca.tasks.video_architecture import build_pipeline
    from reproduce.pretrain.flow import pretrain_flow
    from reproduce.pretrain.video_flow import video_bank, video_network

    torch.manual_seed(1)
    pipeline = build_pipeline(AutoencoderKLWan.from_pretrained(folder / "vae").eval())
    modules = {"transformer": pipeline.transformer, "t5": pipeline.text_encoder}
    pretrain_flow(modules, video_network(pipeline), video_bank(pipeline, folder), folder, FLOW_STEPS, FLOW_DECAY_FROM)
    pipeline.save_pretrained(folder / "pipeline")


def run_judge(folder: Path) -> None:
    """Train the held-out judge, some of its clips through the autoencoder, and save `folder/judge/`."""
    from diffusers import AutoencoderKLWan

    from otca.tasks.video_judge import VideoJudge
    from reproduce.pretrain.video_judge import ACCURACIES, pretrain_video_judge, video_judge_accuracy
    from reproduce.pretrain.video_vae import reconstruct_clips

    vae = AutoencoderKLWan.from_pretrained(folder / "vae").eval()
    reconstruct = functools.partial(reconstruct_clips, vae)
    pretrain_video_judge(folder, EMBEDDED / "judge", reconstruct).save_pretrained(folder / "judge")
    judge = VideoJudge.from_pretrained(folder / "judge")  # as saved: rounded to half precision
    for kind in ACCURACIES:
        print(f"judge, {kind}: {video_judge_accuracy(judge, 700, kind, reconstruct)}")


def run_publish(folder: Path) -> None:
    """Copy what ships into the package, with its hashes, costs and accuracies."""
    publish(
        folder,
        modality="video",
        models={"pipeline": "video", "judge": "video_judge"},
        notes={"max_sequence_length": MAX_SEQUENCE_LENGTH, "frames": FRAMES},
        stages=["vae", "flow", "video_judge_detector", "video_judge_reader"],
        accuracies={"shipped": ("pipeline", 1.0), f"with guidance {GUIDANCE:g}": ("pipeline", GUIDANCE)},
    )


STAGES: dict[str, Callable[[Path], None]] = {"vae": run_vae, "flow": run_flow, "judge": run_judge, "publish": run_publish}
BRANCHES = (("flow",), ("judge",))
"""What runs side by side once the autoencoder is there."""
