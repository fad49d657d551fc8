"""Stages of the embedded image checkpoints; `reproduce/pretrain_embedded.py` runs them in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from otca.tasks.architecture import MAX_SEQUENCE_LENGTH
from reproduce.pretrain.publish import publish

VAE_STEPS = 3200
TRUE_STEPS, NOISY_STEPS = 14000, 1500
"""Steps of the generator on true captions, from which it learns to bind, then on noisy ones, which it learns to mistrust."""
JUDGE_STEPS = 3300
CLIP_STEPS = 3500


def run_vae(folder: Path) -> None:
    """Train the autoencoder and save it as `folder/vae/`."""
    from reproduce.pretrain.vae import peak_signal_to_noise, pretrain_vae

    vae = pretrain_vae(folder, VAE_STEPS)
    vae.save_pretrained(folder / "vae")
    print(f"vae: {peak_signal_to_noise(vae):.2f} dB on fresh scenes")


def run_flow(folder: Path) -> None:
    """Train transformer and text encoders on codes of scenes and save `folder/pipeline/`, with the autoencoder."""
    from diffusers import AutoencoderKL

    from otca.tasks.architecture import build_pipeline
    from reproduce.pretrain.flow import pretrain_flow
    from reproduce.pretrain.image_flow import INTACT, image_bank, image_network

    torch.manual_seed(1)
    pipeline = build_pipeline(AutoencoderKL.from_pretrained(folder / "vae").eval())
    modules = {"transformer": pipeline.transformer, "clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2}
    true = image_bank(pipeline, folder, "true", intact=1.0)
    noisy = image_bank(pipeline, folder, "noisy", intact=INTACT, seed=1)
    pretrain_flow(modules, image_network(pipeline), [(true, TRUE_STEPS), (noisy, NOISY_STEPS)], folder)
    pipeline.save_pretrained(folder / "pipeline")


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
        models={"pipeline": "image", "judge": "judge", "clip": "clip"},
        notes={"max_sequence_length": MAX_SEQUENCE_LENGTH},
        stages=[name for name in STAGES if name != "publish"],
    )


STAGES: dict[str, Callable[[Path], None]] = {
    "vae": run_vae,
    "flow": run_flow,
    "judge": run_judge,
    "clip": run_clip,
    "publish": run_publish,
}
BRANCHES = (("flow",), ("judge", "clip"))
"""What runs side by side once the autoencoder is there."""
