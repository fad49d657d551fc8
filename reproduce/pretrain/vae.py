"""Pre-train the embedded AutoencoderKL on rendered scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from otca.tasks import architecture
from otca.tasks.scenes import random_examples
from reproduce.pretrain.loop import train

KL_WEIGHT = 1e-7
"""Weight of the posterior's KL (per image, summed over the latent) beside the mean squared error."""


def render_batch(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Rendered training scenes as the VAE sees them: (count, 3, H, W) in [-1, 1]."""
    images, _, _ = random_examples("train", count, rng)
    return torch.from_numpy(images) * 2 - 1


def pretrain_vae(folder: Path, steps: int, batch: int = 16, learning_rate: float = 2e-3, seed: int = 0):
    """Returns the trained AutoencoderKL; resumable (see `loop.train`)."""
    torch.manual_seed(seed)
    vae = architecture.build_vae()

    def loss_at(step, rng, generator):
        image = render_batch(rng, batch)
        posterior = vae.encode(image).latent_dist
        reconstruction = vae.decode(posterior.sample(generator)).sample
        error = reconstruction - image
        return error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * posterior.kl().mean()

    train("vae", {"vae": vae}, loss_at, steps, learning_rate, folder, seed=seed, ema_decay=0.998)
    return vae


@torch.no_grad()
def reconstruct(vae, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] through encoder mean and decoder, back in [0, 1]."""
    latent = vae.encode(image_BCHW * 2 - 1).latent_dist.mode()
    return (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)


def peak_signal_to_noise(vae, count: int = 256, seed: int = 10**6) -> float:
    """Reconstruction quality in dB on fresh scenes."""
    images, _, _ = random_examples("test", count, np.random.default_rng(seed))
    image = torch.from_numpy(images)
    error = (reconstruct(vae, image) - image).square().mean(dim=(1, 2, 3))
    return float((-10 * torch.log10(error)).mean())
