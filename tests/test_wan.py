"""The Wan adapter against the stock WanPipeline, with one transformer and with Wan2.2's two experts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from otca.checkpoint import checkpoints
from otca.config import PolicyConfig, SamplerConfig
from otca.errors import InputError
from otca.models.base import build_policy
from otca.sampling import Plan, make_batch, rollout, sigmas_S
from otca.types import Prompt
from tests.toys import toy_config, trained

TEXT = "a red circle moving right"
SETTINGS = {"max_sequence_length": 20, "frames": 9}


def stock(policy, sigma_S, latents, **arguments):
    """The same latents through WanPipeline.__call__ itself, on the same noise levels."""

    class Fixed(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps=None, device=None, **_):
            super().set_timesteps(sigmas=sigma_S[:-1].tolist(), device=device)

    policy.pipeline.scheduler = Fixed(shift=1.0)
    return policy.pipeline(
        prompt=[TEXT] * len(latents),
        height=64,
        width=64,
        num_frames=9,
        num_inference_steps=len(sigma_S) - 1,
        latents=latents,
        max_sequence_length=20,
        output_type="pt",
        **arguments,
    ).frames


def ours(policy, steps, shift=3.0, count=2):
    never, sigma_S = torch.zeros(steps, dtype=torch.bool), sigmas_S(steps, shift)
    batch = make_batch([Prompt("a", TEXT)], [0], count, ("parity",))
    return rollout(policy, batch, Plan(SamplerConfig(steps=steps), sigma_S, never, never, count))


def test_two_experts_are_the_stock_pipelines_also_on_the_boundary(untrained_experts):
    """T = 12 and shift 5 put step 5 exactly on σ = 0.875 (METHOD §5's trap); each expert has a guidance of its own."""
    policy = build_policy(PolicyConfig(path=untrained_experts, true_guidance=2.0, true_guidance_2=1.5, **SETTINGS))
    sigma_S = sigmas_S(12, 5.0)
    assert float(sigma_S[5]) == pytest.approx(0.875, abs=1e-12)
    assert [policy.is_low_noise(float(s)) for s in sigma_S[:-1]] == [False] * 6 + [True] * 6
    asked = []
    policy.pipeline.transformer.register_forward_hook(lambda *_: asked.append("high"))
    policy.pipeline.transformer_2.register_forward_hook(lambda *_: asked.append("low"))
    sampled = ours(policy, 12, shift=5.0)
    assert asked == ["high"] * 6 + ["low"] * 6
    asked.clear()
    frames = stock(policy, sampled.sigma_S, sampled.latents_SB[0], guidance_scale=2.0, guidance_scale_2=1.5)
    assert asked == ["high"] * 12 + ["low"] * 12  # two passes a step
    torch.testing.assert_close(sampled.media_BFCHW, frames, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.875, float(np.float32(0.875)), 0.875 - 1e-8, 0.875 + 1e-8])
def test_rounding_never_moves_the_boundary(untrained_experts, sigma):
    """The tie rule: what rounds to the boundary belongs to the high-noise expert."""
    policy = build_policy(PolicyConfig(path=untrained_experts, **SETTINGS))
    assert not policy.is_low_noise(sigma) and policy.is_low_noise(0.874)


def test_one_call_cannot_straddle_the_boundary(untrained_experts):
    policy = build_policy(PolicyConfig(path=untrained_experts, **SETTINGS))
    x = policy.noise([torch.Generator().manual_seed(i) for i in range(2)])
    with pytest.raises(ValueError, match="both sides"):
        policy.velocity(x, torch.tensor([0.9, 0.5]), policy.encode([TEXT] * 2))


def train(path, folder, **changes):
    video = {"policy.max_sequence_length": 20, "policy.frames": 9, "prompts": "embedded:video/train", "sampler.shift": 5.0}
    sizes = {"group_size": 2, "micro_batch": 2, "optimizer.learning_rate": 1e-2}
    return trained(toy_config("otca", path, **video, **sizes, **changes), folder)


@pytest.mark.parametrize("first_k, moved", [(1, [True, False]), (5, [True, True])])
def test_a_step_trains_the_expert_that_made_it(untrained_experts, tmp_path, first_k, moved):
    """Training step 0 alone (σ = 1) moves the high-noise expert only; training all steps moves both."""
    changes = {"step_selection.kind": "first_k", "step_selection.count": first_k}
    fresh = build_policy(PolicyConfig(path=untrained_experts, **SETTINGS)).pipeline
    pipeline = train(untrained_experts, tmp_path, **changes).policy.pipeline
    pairs = [(fresh.transformer, pipeline.transformer), (fresh.transformer_2, pipeline.transformer_2)]
    assert [any(not torch.equal(a, b) for a, b in zip(f.parameters(), p.parameters())) for f, p in pairs] == moved
    row = pd.read_csv(tmp_path / "train.csv").iloc[0]
    assert row["first_ratio_deviation"] == 0 and row["network_evaluations"] == 4 * (6 + 3 * first_k)


def test_whole_experts_load_in_the_stock_pipeline(untrained_experts, tmp_path):
    """Both experts' weights, read by diffusers alone, give the same clip; a second load agrees."""
    policy = train(untrained_experts, tmp_path).policy
    saved, sampled = checkpoints(tmp_path)[-1], ours(policy, 4, shift=5.0)
    fresh = build_policy(PolicyConfig(path=untrained_experts, **SETTINGS))
    before = stock(fresh, sampled.sigma_S, sampled.latents_SB[0], guidance_scale=1.0)
    assert not torch.allclose(before, sampled.media_BFCHW, atol=1e-4)
    for name in ("transformer", "transformer_2"):
        fresh.pipeline.register_modules(**{name: WanTransformer3DModel.from_pretrained(saved / name)})
    theirs = stock(fresh, sampled.sigma_S, sampled.latents_SB[0], guidance_scale=1.0)
    torch.testing.assert_close(theirs, sampled.media_BFCHW, rtol=0, atol=1e-5)
    again = build_policy(PolicyConfig(path=untrained_experts, **SETTINGS))
    again.load(saved)
    assert all(torch.equal(a, b) for a, b in zip(again.trainable_parameters(), policy.trainable_parameters()))


def test_bad_settings_end_in_one_line(untrained_wan, untrained_experts, untrained_pipeline, tmp_path):
    with pytest.raises(InputError, match=r"policy.frames is 8; .* makes 4·k \+ 1 frames, such as 5"):
        build_policy(PolicyConfig(path=untrained_wan, frames=8))
    with pytest.raises(InputError, match="policy.frames is 0"):
        build_policy(PolicyConfig(path=untrained_wan))
    folder = shutil.copytree(untrained_wan, tmp_path / "odd")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": 0.9}))
    with pytest.raises(InputError, match="needs a boundary_ratio"):
        build_policy(PolicyConfig(path=str(folder), **SETTINGS))
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(InputError, match="is a StableDiffusionPipeline; there are adapters for FluxPipeline, .*WanPipeline"):
        build_policy(PolicyConfig(path=str(folder), **SETTINGS))
