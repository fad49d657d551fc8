"""The linear preview: exact where decoding is linear, close on the embedded autoencoders, and cheaper than they are."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from otca.config import PolicyConfig, SamplerConfig, TrainConfig
from otca.methods import METHODS
from otca.models.base import build_policy
from otca.preview import cell_features, fit_preview
from otca.prompts import load_prompts
from otca.rollout import make_batch, rollout
from otca.schedules import StepPlan, sigmas_S
from otca.trainer import Trainer


def linear_media(grid_BCFHW, span, side, seed=0):
    """Media that are a linear map of each cell's neighbourhood: what a preview can learn exactly."""
    generator, parts = torch.Generator().manual_seed(seed), []
    for frames, length in ((grid_BCFHW[:, :, :1], 1), (grid_BCFHW[:, :, 1:], span)):
        if frames.shape[2]:
            feature = cell_features(frames)
            weight = torch.randn(feature.shape[-1], length * 3 * side * side, generator=generator) * 0.01
            block = (feature @ weight + 0.5).unflatten(4, (length, 3, side, side))
            b, f, h, w = block.shape[:4]
            parts.append(torch.einsum("bfhwscyx->bfschywx", block).reshape(b, f * length, 3, h * side, w * side))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("shape, span, side", [((12, 4, 1, 5, 3), 1, 8), ((12, 3, 3, 4, 4), 4, 2)])
def test_a_linear_decoder_is_learned(shape, span, side):
    grid = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    media = linear_media(grid, span, side)
    preview = fit_preview(grid, media)
    assert (preview.span, preview.side) == (span, side) and media.shape[1] == 1 + span * (shape[2] - 1)
    new = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(preview.decode(new), linear_media(new, span, side).clamp(0, 1), atol=5e-3, rtol=0)


def test_processes_share_the_fit():
    """Two halves whose sums are added give the map of the whole."""
    grid = torch.randn(8, 4, 1, 5, 5, generator=torch.Generator().manual_seed(3))
    media = torch.rand(8, 1, 3, 40, 40, generator=torch.Generator().manual_seed(4))
    whole, sums = fit_preview(grid, media), []

    def noting(value):
        sums.append(value)
        return value

    fit_preview(grid[4:], media[4:], noting)
    others = iter(sums)
    half = fit_preview(grid[:4], media[:4], lambda value: value + next(others))
    torch.testing.assert_close(half.map_FDP[0], whole.map_FDP[0])


@pytest.mark.parametrize("modality", ["image", "video"])
def test_it_shows_what_the_autoencoder_would(modality):
    """Fitted on some samples of the embedded model, it draws others, most of what sets them apart from their mean."""
    policy = build_policy(PolicyConfig(path=f"embedded:{modality}"))
    batch = make_batch(load_prompts(f"embedded:{modality}/validation", 36), list(range(36)), 1, ("preview",))
    never = torch.zeros(6, dtype=torch.bool)
    sampled = rollout(policy, batch, SamplerConfig(steps=6), sigmas_S(6, 3.0), StepPlan(never, never), 12)
    grid, media = policy.latent_grid(sampled.latents_SB[-1]), sampled.media_BFCHW
    assert grid.ndim == 5 and len(grid) == 36
    shown = fit_preview(grid[:24], media[:24]).decode(grid[24:])
    assert shown.shape == media[24:].shape
    error, spread = (shown - media[24:]).square().mean(), (media[24:] - media[:24].mean(0)).square().mean()
    assert error < 0.5 * spread


def test_process_credit_trains_on_previews(untrained_pipeline, tmp_path):
    settings = {
        "method": "process_credit",
        "policy.path": untrained_pipeline,
        "iterations": 1,
        "prompts_per_iteration": 2,
        "group_size": 4,
        "micro_batch": 4,
        "sampler.steps": 4,
        "credit.process_decoder": "linear",
    }
    trainer = Trainer(TrainConfig.from_dotted(settings), METHODS["process_credit"], tmp_path)
    decoded = []
    decode = trainer.policy.decode
    trainer.policy.decode = lambda latents: decoded.append(len(latents)) or decode(latents)
    trainer.run()
    assert sum(decoded) == 8, "the autoencoder decodes the final states alone"
    assert pd.read_csv(tmp_path / "train.csv").iloc[0].notna().all()
