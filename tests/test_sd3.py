"""The SD3 adapter: our rollout is the stock pipeline's, what is trained loads there, and bad sizes are refused."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from otca.config import PolicyConfig, SamplerConfig, TrainConfig
from otca.errors import InputError
from otca.methods import METHODS
from otca.models.base import build_policy
from otca.sampling import Plan, make_batch, rollout, sigmas_S
from otca.trainer import Trainer
from otca.types import Prompt

TEXT, LENGTH = "a red circle", 10


def stock(pipeline, latents, sigma_S, guidance):
    """Images of StableDiffusion3Pipeline itself; its scheduler shifts the levels that it is given, so they are unshifted."""
    shift = pipeline.scheduler.config.shift
    unshifted = [s / (shift - (shift - 1) * s) for s in sigma_S[:-1].tolist()]
    count = len(latents)
    return pipeline(
        prompt=[TEXT] * count,
        negative_prompt=[""] * count,
        height=64,
        width=64,
        num_inference_steps=len(unshifted),
        sigmas=unshifted,
        guidance_scale=guidance,
        latents=latents,
        max_sequence_length=LENGTH,
        output_type="pt",
    ).images


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_ode_rollout_is_the_stock_pipeline(untrained_sd3, guidance):
    policy = build_policy(PolicyConfig(path=untrained_sd3, true_guidance=guidance, max_sequence_length=LENGTH))
    assert policy.forwards_per_velocity == (2 if guidance > 1 else 1)
    steps = 4
    never, sigma_S = torch.zeros(steps, dtype=torch.bool), sigmas_S(steps, 3.0)
    batch = make_batch([Prompt("a", TEXT)], [0], 2, ("parity",))
    ours = rollout(policy, batch, Plan(SamplerConfig(steps=steps), sigma_S, never, never, 2))
    theirs = stock(policy.pipeline, ours.latents_SB[0], sigma_S, guidance)
    torch.testing.assert_close(ours.media_BFCHW[:, 0], theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 0.01


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_training_keeps_ratio_one_and_loads_in_the_stock_pipeline(untrained_sd3, tmp_path, tuning):
    settings = {
        "method": "otca",
        "policy.path": untrained_sd3,
        "policy.tuning": tuning,
        "policy.lora_rank": 4,
        "policy.lora_alpha": 12.0,
        "policy.true_guidance": 4.5,
        "policy.max_sequence_length": LENGTH,
        "rewards": ["tests.test_baselines:Red", "tests.test_baselines:Blue"],
        "prompts_per_iteration": 2,
        "group_size": 2,
        "micro_batch": 2,
        "iterations": 1,
        "sampler.steps": 3,
        "optimizer.learning_rate": 1e-2,
    }
    trainer = Trainer(TrainConfig.from_dotted(settings), METHODS["otca"], tmp_path)
    trainer.run()
    row = pd.read_csv(tmp_path / "train.csv").iloc[0]
    assert row["first_ratio_deviation"] == 0 and row["update_norm"] > 0
    assert row["network_evaluations"] == 4 * 2 * (3 + 2 * 3)  # guidance doubles every pass
    saved, fresh = tmp_path / "checkpoints" / "iteration_000001", StableDiffusion3Pipeline.from_pretrained(untrained_sd3)
    fresh.set_progress_bar_config(disable=True)
    latents, sigma_S = trainer.policy.noise([torch.Generator().manual_seed(0)]), sigmas_S(3, 3.0)
    before = stock(fresh, latents, sigma_S, 4.5)
    if tuning == "lora":
        fresh.load_lora_weights(saved)
        assert fresh.transformer.peft_config["default_0"].lora_alpha == 12
    else:
        fresh.transformer = type(fresh.transformer).from_pretrained(saved / "transformer")
    after = stock(fresh, latents, sigma_S, 4.5)
    assert torch.equal(after, stock(trainer.policy.pipeline, latents, sigma_S, 4.5))
    assert not torch.equal(after, before)


def test_sizes_beyond_the_position_table_are_refused(untrained_sd3):
    with pytest.raises(InputError, match="height × width is 64 × 256; .* makes 128 pixels a side at most"):
        build_policy(PolicyConfig(path=untrained_sd3, width=256))
