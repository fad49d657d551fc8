"""Seeds, chunks and the stock pipeline (invariants 1, 3)."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from otca.config import PolicyConfig, SamplerConfig, StepSelectionConfig
from otca.models.base import build_policy, swapped
from otca.sampling import Plan, make_batch, rollout, sample_seed, select_steps, sigmas_S, slots_of
from otca.types import Prompt

PROMPTS = [Prompt("a", "a red circle"), Prompt("b", "two squares"), Prompt("c", "a red circle")]


@pytest.fixture(scope="module")
def policy(untrained_pipeline):
    return build_policy(PolicyConfig(path=untrained_pipeline))


def sample(policy, micro_batch, kind="flow_sde", level=0.7, shared=False, steps=4):
    batch = make_batch(PROMPTS, [0, 1, 2], 4, ("run", 0), shared)
    masks = select_steps(StepSelectionConfig(), steps, 0, np.random.default_rng(0))
    plan = Plan(SamplerConfig(kind=kind, steps=steps, level=level), sigmas_S(steps, 3.0), *masks, micro_batch)
    return rollout(policy, batch, plan)


def test_noise_is_bitwise_independent_of_chunks_and_latents_agree(policy):
    """Invariant 3: the first state is equal bit for bit, all states to 1e-5, for chunks of 12, 4 and 3."""
    whole, quarters, thirds = (sample(policy, m) for m in (12, 4, 3))
    for other in (quarters, thirds):
        assert torch.equal(whole.latents_SB[0], other.latents_SB[0])
        torch.testing.assert_close(whole.latents_SB, other.latents_SB, rtol=0, atol=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours(policy):
    """The same seeds in another batch give the same noise: slot 2 alone equals slot 2 of three."""
    whole = sample(policy, 4)
    batch = make_batch(PROMPTS[2:], [2], 4, ("run", 0))
    masks = select_steps(StepSelectionConfig(), 4, 0, np.random.default_rng(0))
    alone = rollout(policy, batch, Plan(SamplerConfig(steps=4), sigmas_S(4, 3.0), *masks, 4))
    assert torch.equal(alone.latents_SB[0], whole.latents_SB[0, 8:])
    torch.testing.assert_close(alone.latents_SB, whole.latents_SB[:, 8:], rtol=0, atol=1e-5)


def test_groups_have_g_members_by_slot(policy):
    """Invariant 6: slots 0 and 2 share a text and stay two groups of 4 with different noise."""
    out = sample(policy, 12)
    assert out.group_B.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(out.seed_B)) == 12
    assert not torch.equal(out.latents_SB[0, :4], out.latents_SB[0, 8:])


def test_shared_noise_is_shared_within_a_group_only(policy):
    out = sample(policy, 12, shared=True)
    first = out.latents_SB[0]
    assert torch.equal(first[0], first[3]) and not torch.equal(first[0], first[4])
    assert not torch.equal(out.latents_SB[1, 0], out.latents_SB[1, 3])


def test_embedded_guidance_is_the_stock_pipelines(untrained_pipeline, tmp_path):
    """A transformer with a guidance embedding, as FLUX.1-dev's: our image is FluxPipeline's at the same scale, at no other."""
    folder = shutil.copytree(untrained_pipeline, tmp_path / "embeds")
    config = FluxTransformer2DModel.load_config(folder / "transformer")
    torch.manual_seed(4)
    FluxTransformer2DModel.from_config(config | {"guidance_embeds": True}).save_pretrained(folder / "transformer")
    policy = build_policy(PolicyConfig(path=str(folder), guidance=3.5))
    steps = 4
    never, sigma_S = torch.zeros(steps, dtype=torch.bool), sigmas_S(steps, 3.0)
    batch = make_batch(PROMPTS[:1], [0], 2, ("parity",))
    ours = rollout(policy, batch, Plan(SamplerConfig(steps=steps), sigma_S, never, never, 2))

    given = {"prompt": [PROMPTS[0].text] * 2, "height": 64, "width": 64, "num_inference_steps": steps, "output_type": "pt"}
    given |= {"sigmas": sigma_S[:-1].tolist(), "latents": ours.latents_SB[0], "max_sequence_length": policy.max_sequence_length}
    at_own, at_one = (policy.pipeline(guidance_scale=scale, **given).images for scale in (3.5, 1.0))
    torch.testing.assert_close(ours.media_BFCHW[:, 0], at_own, rtol=0, atol=1e-5)
    assert (ours.media_BFCHW[:, 0] - at_one).abs().max() > 1e-3
    assert policy.protocol["guidance"] == 3.5


def test_processes_share_slots_without_splitting_a_group():
    """Two or four processes cover each update's slots once; a slot's seeds do not depend on who samples it."""
    for world in (1, 2, 4):
        parts = [slots_of(rank, world, 8, 2) for rank in range(world)]
        assert sorted(s for part in parts for s in part) == list(range(8))
        firsts = sorted(s for part in parts for s in part[: len(part) // 2])
        assert firsts == [0, 1, 2, 3]
    prompt = PROMPTS[:1] * 8
    whole = make_batch(prompt, slots_of(0, 1, 8, 2), 2, ("run", 3))
    half = make_batch(prompt[:4], slots_of(1, 2, 8, 2), 2, ("run", 3))
    seeds = dict(zip(zip(whole.group_B.tolist(), [0, 1] * 8), whole.seed_B))
    assert [seeds[key] for key in zip(half.group_B.tolist(), [0, 1] * 4)] == half.seed_B


def test_notes_of_a_checkpoint_are_obeyed_and_overruled(untrained_pipeline, tmp_path):
    """otca.json in the model folder sets text length and guidance; the command line wins."""
    folder = shutil.copytree(untrained_pipeline, tmp_path / "model")
    (folder / "otca.json").write_text(json.dumps({"max_sequence_length": 12, "true_guidance": 2.0}))
    noted = build_policy(PolicyConfig(path=str(folder)))
    assert noted.encode(["a red circle"]).parts[0].shape[1] == 12 and noted.forwards_per_velocity == 2
    assert build_policy(PolicyConfig(path=str(folder), true_guidance=1.0)).forwards_per_velocity == 1


def test_seeds_are_stable_across_machines():
    """A published number: the noise of a run can be reproduced from its key."""
    assert sample_seed(0, 0, 0, 0) == 6001712217380249996
    assert sample_seed(0, 0, 0, 1) != sample_seed(0, 0, 1, 0)


def test_swapped_weights_answer_and_go_back(policy):
    parameters = policy.trainable_parameters()
    before = [p.detach().clone() for p in parameters]
    zeros = [torch.zeros_like(p) for p in parameters]
    condition = policy.encode(["a red circle"])
    x = policy.noise([torch.Generator().manual_seed(0)])
    with torch.no_grad():
        own = policy.velocity(x, torch.ones(1), condition)
        with swapped(policy.network, parameters, zeros):
            assert not policy.velocity(x, torch.ones(1), condition).any()
        assert torch.equal(policy.velocity(x, torch.ones(1), condition), own)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before))


@pytest.mark.parametrize("name", ["untrained_pipeline", "untrained_wan"])
def test_other_sizes_are_those_of_a_policy_made_for_them(request, name):
    frames = {"frames": 5} if name == "untrained_wan" else {}
    settings = {"path": request.getfixturevalue(name), "max_sequence_length": 10, **frames}
    own, other = build_policy(PolicyConfig(**settings)), build_policy(PolicyConfig(**settings, height=32, width=96))
    condition = own.encode(["a red circle"])

    def sampled(policy):
        latents = policy.noise([torch.Generator().manual_seed(0)])
        return policy.decode(policy.velocity(latents, torch.tensor([0.5]), condition))

    before = sampled(own)
    with own.sized(32, 96):
        media = sampled(own)
    assert media.shape[-2:] == (32, 96) and torch.equal(media, sampled(other))
    with own.sized(0, 0):
        assert torch.equal(sampled(own), before)
    assert torch.equal(sampled(own), before)
