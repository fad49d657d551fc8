"""Pre-train the embedded causal autoencoder (AutoencoderKLWan) on rendered clips: first single frames, then clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample

from otca.tasks import video_architecture
from otca.tasks.video_frames import render
from otca.tasks.video_scenes import FRAMES, SKILLS, draw_clip, frame_of, render_clip, split_specs
from reproduce.pretrain.loop import train

KL_WEIGHT = 1e-7
"""Weight of the posterior's KL (per clip, summed over the latent) beside the reconstruction error."""

STILL_STEPS = 1500
"""First steps, which train on single frames: space is learned there at a ninth of the cost."""

WHOLE_EVERY = 5
"""Of the later steps every so many takes whole clips, the others five frames: one, and one group of four."""


def render_stills(rng: np.random.Generator, count: int, pools: dict[str, list[dict]]) -> torch.Tensor:
    """Random frames of training clips: (count, 3, 1, H, W) in [-1, 1]."""
    frames = [render(frame_of(_clip(rng, pools), int(rng.integers(FRAMES)))) for _ in range(count)]
    return torch.from_numpy(np.stack(frames))[:, :, None] * 2 - 1


def render_clips(rng: np.random.Generator, count: int, pools: dict[str, list[dict]]) -> torch.Tensor:
    """Training clips: (count, 3, FRAMES, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack([render_clip(_clip(rng, pools)) for _ in range(count)])).transpose(1, 2) * 2 - 1


def _clip(rng: np.random.Generator, pools: dict[str, list[dict]]):
    specs = pools[SKILLS[rng.integers(len(SKILLS))]]
    return draw_clip(specs[rng.integers(len(specs))], rng)


@torch.no_grad()
def ignore_time(vae) -> None:
    """Set every kernel so that a frame is coded without its neighbours: a clip starts as the stills it is made of.

    Causal 3×3×3 kernels keep only their last slice (the others are not trained by stills, whose past is zero); the kernels
    that halve or double the number of frames copy a frame.
    """
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
            module.weight[:, :, :2] = 0
        if isinstance(module, WanResample) and hasattr(module, "time_conv"):
            kernel = module.time_conv.weight
            kernel.zero_()
            kernel[:, :, 2, 0, 0] = torch.eye(kernel.shape[1]).repeat(kernel.shape[0] // kernel.shape[1], 1)
            module.time_conv.bias.zero_()


def pretrain_video_vae(folder: Path, steps: int, decay_from: int, batch: int = 4, learning_rate: float = 2e-3, seed: int = 0):
    """Returns the trained AutoencoderKLWan; resumable (see `loop.train`). Steps on stills take four times the batch."""
    torch.manual_seed(seed)
    vae = video_architecture.build_vae()
    ignore_time(vae)
    pools = split_specs("train")

    def loss_at(step, rng, generator):
        if step < STILL_STEPS:
            media = render_stills(rng, 4 * batch, pools)
        else:
            media = render_clips(rng, batch, pools)
            if step % WHOLE_EVERY:
                first = int(rng.integers(FRAMES - 4))
                media = media[:, :, first : first + 5]
        posterior = vae.encode(media).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - media
        return error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * posterior.kl().mean()

    train(
        "vae",
        {"vae": vae},
        loss_at,
        steps,
        learning_rate,
        folder,
        seed=seed,
        ema_decay=0.998,
        save_every=100,
        decay_from=decay_from,
    )
    return vae


@torch.no_grad()
def reconstruct_clips(vae, media_BFCHW: torch.Tensor) -> torch.Tensor:
    """Clips (B, F, 3, H, W) in [0, 1] through encoder mean and decoder, back in [0, 1]."""
    out = []
    for part in media_BFCHW.transpose(1, 2).split(8):
        latent = vae.encode(part * 2 - 1).latent_dist.mode()
        out.append((vae.decode(latent).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(out).transpose(1, 2)


def peak_signal_to_noise(vae, count: int = 64, seed: int = 10**6) -> float:
    """Reconstruction quality in dB on fresh clips."""
    media = render_clips(np.random.default_rng(seed), count, split_specs("test")).transpose(1, 2) / 2 + 0.5
    error = (reconstruct_clips(vae, media) - media).square().mean(dim=(1, 2, 3, 4))
    return float((-10 * torch.log10(error)).mean())
