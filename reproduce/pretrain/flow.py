"""Pre-train a small rectified-flow generator on banks of latents."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from reproduce.pretrain.loop import train

SHIFT = 3.0
"""Time shift of the training noise levels; without it the few, large objects are decided where almost nothing is trained."""

CAPTION_DROPOUT = 0.1
"""Share of samples trained without a caption, so that classifier-free guidance is possible."""

Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(noisy latents (B, …), sigma (B,), token ids (B, L)) → velocity (B, …), text encoders included."""


@dataclass(frozen=True)
class Bank:
    """Training data: latent (N, …) fp16, spec (N,) the index of each one's spec, wordings: per spec, token ids (W, L).

    ``empty`` (L,) is the tokenised empty caption.
    """

    latent: torch.Tensor
    spec: torch.Tensor
    wordings: list[torch.Tensor]
    empty: torch.Tensor

    def draw(self, rng: np.random.Generator, generator: torch.Generator, batch: int, dropout: float = 0.0):
        """Clean and noise (batch, …), sigma (batch,) and token ids (batch, L); some captions dropped."""
        pick = torch.from_numpy(rng.integers(0, len(self.latent), batch))
        clean = self.latent[pick].float()
        rows = [self.wordings[i][rng.integers(len(self.wordings[i]))] for i in self.spec[pick].tolist()]
        rows = [self.empty if rng.random() < dropout else row for row in rows]
        level = torch.sigmoid(torch.randn(batch, generator=generator))  # logit-normal, as SD3, for one half
        level[::2] = torch.rand(len(level[::2]), generator=generator)  # uniform for the other: enough weight on both ends
        sigma = SHIFT * level / (1 + (SHIFT - 1) * level)
        return clean, torch.randn(clean.shape, generator=generator), sigma, torch.stack(rows)


def draw_specs(specs: list[dict], shares: dict[str, float], rng: np.random.Generator, count: int) -> list[int]:
    """Indices of ``count`` specs: a skill by its share, then any spec of the skill."""
    by_skill = {skill: [i for i, spec in enumerate(specs) if spec["skill"] == skill] for skill in shares}
    skills, share = list(shares), np.array(list(shares.values()), dtype=float)
    return [int(rng.choice(by_skill[str(rng.choice(skills, p=share / share.sum()))])) for _ in range(count)]


def stored_latents(path: Path, count: int, make: Callable[[int], tuple[torch.Tensor, list[int]]], batch: int = 64):
    """``count`` latents (fp16) and their specs, ``batch`` at a time by ``make(index of the batch)``; kept in ``path``.

    A resumed run trains on the same bank.
    """
    if not path.exists():
        parts = [make(index) for index in range(count // batch)]
        bank = {"latent": torch.cat([latent.half() for latent, _ in parts])}
        bank["spec"] = torch.tensor([spec for _, specs in parts for spec in specs])
        aside = path.with_suffix(".tmp")
        save_file(bank, aside)
        os.replace(aside, path)
    bank = load_file(path)
    return bank["latent"], bank["spec"]


def pretrain_flow(
    modules: dict[str, torch.nn.Module],
    network: Velocity,
    banks: list[tuple[Bank, int]],
    folder: Path,
    batch: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train transformer and text encoders (``modules``, in place) to predict noise − data; resumable.

    ``banks``: training data and the number of steps on each, in turn. The rate decays over the last of them.
    """
    ends = np.cumsum([steps for _, steps in banks])

    def loss_at(step, rng, generator):
        bank = banks[int(np.searchsorted(ends, step, side="right"))][0]
        clean, noise, sigma, ids = bank.draw(rng, generator, batch, CAPTION_DROPOUT)
        return (network(_mix(clean, noise, sigma), sigma, ids) - (noise - clean)).square().mean()

    decay_from = int(ends[-1] - banks[-1][1] - 1000)
    train(
        "flow",
        modules,
        loss_at,
        int(ends[-1]),
        learning_rate,
        folder,
        seed=seed,
        ema_decay=0.998,
        warmup=300,
        decay_from=decay_from,
    )


def _mix(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    level = sigma.view(-1, *[1] * (clean.ndim - 1))
    return (1 - level) * clean + level * noise


def tokenize(tokenizer, texts: list[str], length: int) -> torch.Tensor:
    """Padded token ids (len(texts), length)."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
