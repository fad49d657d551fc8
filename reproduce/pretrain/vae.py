"""Pre-train the embedded AutoencoderKL: its encoder writes the code of a scene, its decoder draws from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from otca.tasks import architecture
from otca.tasks.scenes import SKILLS, all_specs, draw_scene, render
from reproduce.pretrain.codes import SCALE_C, code_of
from reproduce.pretrain.loop import train

NOISE = 0.3
"""Largest standard deviation of the noise on the codes that the decoder draws from, in shares of a channel's amplitude: it
learns to draw crisply what lies near a code."""
LOG_VARIANCE = -8.0
"""What the encoder is to say of its own uncertainty, whose mean alone is used."""


def random_scene(rng: np.random.Generator):
    """A scene of any spec on the generator's lattice, skills evenly."""
    specs = all_specs(SKILLS[rng.integers(len(SKILLS))])
    return draw_scene(specs[rng.integers(len(specs))], rng, lattice=True)


def scene_bank(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 3, H, W) in [-1, 1] and their codes (N, 8, 4, 4)."""
    rng = np.random.default_rng([seed, 5])
    scenes = [random_scene(rng) for _ in range(count)]
    image = torch.from_numpy(np.stack([render(scene) for scene in scenes])) * 2 - 1
    return image, torch.from_numpy(np.stack([code_of(scene) for scene in scenes]))


def pretrain_vae(folder: Path, steps: int, batch: int = 32, learning_rate: float = 3e-3, seed: int = 0, bank: int = 12000):
    """Returns the trained AutoencoderKL; resumable (see `loop.train`)."""
    torch.manual_seed(seed)
    vae = architecture.build_vae()
    images, codes = scene_bank(bank, seed)
    scale = torch.from_numpy(SCALE_C).view(-1, 1, 1)

    def loss_at(step, rng, generator):
        pick = torch.from_numpy(rng.integers(0, bank, batch))
        image, code = images[pick], codes[pick]
        posterior = vae.encode(image).latent_dist
        written = ((posterior.mean - code) / scale).square().mean()
        sure = (posterior.logvar - LOG_VARIANCE).square().mean()
        level = NOISE * torch.rand(batch, 1, 1, 1, generator=generator)
        noisy = code + level * scale * torch.randn(code.shape, generator=generator)
        error = vae.decode(noisy).sample - image
        return error.square().mean() + 0.2 * error.abs().mean() + 0.05 * written + 1e-4 * sure

    train("vae", {"vae": vae}, loss_at, steps, learning_rate, folder, seed=seed, ema_decay=0.998, decay_from=steps * 2 // 5)
    return vae


@torch.no_grad()
def reconstruct(vae, image_BCHW: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1] through encoder mean and decoder, back in [0, 1]."""
    latent = vae.encode(image_BCHW * 2 - 1).latent_dist.mode()
    return (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)


def peak_signal_to_noise(vae, count: int = 256, seed: int = 10**6) -> float:
    """Reconstruction quality in dB on fresh scenes."""
    image = scene_bank(count, seed)[0] / 2 + 0.5
    error = (reconstruct(vae, image) - image).square().mean(dim=(1, 2, 3))
    return float((-10 * torch.log10(error)).mean())
