"""Stages of the embedded checkpoints; `reproduce/pretrain_embedded.py` runs them in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from otca.files import EMBEDDED
from otca.tasks import architecture, video_scenes
from reproduce.judged import TASKS, drawings
from reproduce.pretrain.publish import publish

VAE_STEPS = 3200
VIDEO_VAE_STEPS = 1000, 1200, 8000
"""Steps on stills, on moves and on clips."""
TRUE_STEPS, NOISY_STEPS = 14000, {"image": 1500, "video": 4000}
"""Steps of a generator on true captions, from which it learns to bind, then on noisy ones, which it learns to mistrust."""
JUDGE_STEPS, VIDEO_JUDGE_STEPS = 3300, 1600
CLIP_STEPS = 3500
JUDGED = 600
"""Test drawings that a judge is measured on."""


def trained_vae(modality: str, folder: Path):
    """The autoencoder of the first stage."""
    import diffusers

    kind = {"image": diffusers.AutoencoderKL, "video": diffusers.AutoencoderKLWan}[modality]
    return kind.from_pretrained(folder / "vae").eval()


def run_vae(modality: str, folder: Path) -> None:
    """Train the autoencoder and save it as `folder/vae/`."""
    from reproduce.pretrain.vae import pretrain_vae, pretrain_video_vae

    vae = pretrain_vae(folder, VAE_STEPS) if modality == "image" else pretrain_video_vae(folder, VIDEO_VAE_STEPS)
    vae.save_pretrained(folder / "vae")


def run_flow(modality: str, folder: Path) -> None:
    """Train transformer and text encoders on codes of drawings and save `folder/pipeline/`, with the autoencoder."""
    from reproduce.pretrain.flow import pretrain_flow
    from reproduce.pretrain.image_flow import image_bank, image_network
    from reproduce.pretrain.video_flow import video_bank, video_network

    torch.manual_seed(1)
    vae = trained_vae(modality, folder)
    if modality == "image":
        pipeline, bank, network = architecture.build_pipeline(vae), image_bank, image_network
        modules = {"transformer": pipeline.transformer, "clip": pipeline.text_encoder, "t5": pipeline.text_encoder_2}
    else:
        pipeline, bank, network = architecture.build_video_pipeline(vae), video_bank, video_network
        modules = {"transformer": pipeline.transformer, "text_encoder": pipeline.text_encoder}
    true = bank(pipeline, folder, "true", noisy=False)
    noisy = bank(pipeline, folder, "noisy", noisy=True, seed=1)
    pretrain_flow(modules, network(pipeline), [(true, TRUE_STEPS), (noisy, NOISY_STEPS[modality])], folder)
    pipeline.save_pretrained(folder / "pipeline")


def run_judge(modality: str, folder: Path) -> None:
    """Train the held-out judge, part of its pictures through the autoencoder, and save `folder/judge/`."""
    from reproduce.pretrain.judge import pretrain_judge, pretrain_video_judge

    vae = trained_vae(modality, folder)
    if modality == "image":
        judge = pretrain_judge(folder, JUDGE_STEPS, vae)
    else:
        judge = pretrain_video_judge(folder, VIDEO_JUDGE_STEPS, vae, start=EMBEDDED / "judge")
    judge.save_pretrained(folder / "judge")
    for what, media, prompts, right in drawings(TASKS[modality], JUDGED, vae):
        print(f"judge, {what}: {(judge.verdict(media, prompts) == right).float().mean():.4f} right")


def run_clip(modality: str, folder: Path) -> None:
    """Train the held-out open_clip model and save `folder/clip/`."""
    from reproduce.pretrain.clip import pretrain_clip, retrieval_accuracy

    vae = trained_vae(modality, folder)
    clip = pretrain_clip(folder, CLIP_STEPS, vae)
    clip.save_pretrained(folder / "clip")
    print(f"clip: {retrieval_accuracy(clip, 1024, vae)}")


def run_publish(modality: str, folder: Path) -> None:
    """Copy what ships into the package, with its hashes, costs and accuracies."""
    if modality == "image":
        models = {"pipeline": "image", "judge": "judge", "clip": "clip"}
        notes = {"max_sequence_length": architecture.MAX_SEQUENCE_LENGTH}
    else:
        models = {"pipeline": "video", "judge": "video_judge"}
        notes = {"max_sequence_length": architecture.VIDEO_SEQUENCE_LENGTH, "frames": video_scenes.FRAMES}
    publish(folder, modality, TASKS[modality], models, notes)


@dataclass(frozen=True)
class Modality:
    """Stages by name, each a function of the folder; ``branches`` run side by side once the autoencoder is there."""

    stages: dict[str, Callable[[Path], None]]
    branches: tuple[tuple[str, ...], ...]


def _modality(name: str, branches: tuple[tuple[str, ...], ...]) -> Modality:
    runs = {"vae": run_vae, "flow": run_flow, "judge": run_judge, "clip": run_clip, "publish": run_publish}
    names = ("vae", *(stage for branch in branches for stage in branch), "publish")
    return Modality({stage: partial(runs[stage], name) for stage in names}, branches)


MODALITIES = {"image": _modality("image", (("flow",), ("judge", "clip"))), "video": _modality("video", (("flow",), ("judge",)))}
