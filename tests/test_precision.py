"""What runs in bf16 and what does not, encoded prompts on disk, sliced decoding."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from otca import presets
from otca.config import PolicyConfig, TrainConfig
from otca.errors import InputError
from otca.models.base import build_policy
from otca.models.texts import TextCache
from otca.prompts import load_prompts
from otca.rewards.base import build_reward, score_all
from otca.sampling import make_batch, ode_plan, rollout
from tests.toys import toy_config, trained, trainer_of

TEXTS = ["a red circle", "a blue square", "a red circle"]
PIPELINES = ("untrained_pipeline", "untrained_wan")


def config_of(request, name, **changes):
    frames = {"frames": 5} if name == "untrained_wan" else {}
    return PolicyConfig(path=str(request.getfixturevalue(name)), max_sequence_length=10, **frames, **changes)


@pytest.fixture(params=PIPELINES)
def name(request):
    return request.param


# ----------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_in_bf16_what_is_trained_and_the_vae_are_fp32_and_the_rest_bf16(request, name, tuning):
    policy = build_policy(config_of(request, name, precision="bf16", tuning=tuning))
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    assert policy.pipeline.vae.dtype == torch.float32 and policy.pipeline.text_encoder.dtype == torch.bfloat16
    frozen = {p.dtype for p in policy.pipeline.transformer.parameters() if not p.requires_grad}
    assert torch.bfloat16 in frozen if tuning == "lora" else not frozen
    latents, sigma_B = policy.noise([torch.Generator().manual_seed(0)]), torch.tensor([0.7])
    rough = policy.velocity(latents, sigma_B, policy.encode(TEXTS[:1]))
    exact_policy = build_policy(config_of(request, name))
    exact = exact_policy.velocity(latents, sigma_B, exact_policy.encode(TEXTS[:1]))
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()
    assert policy.decode(latents).dtype == torch.float32


@pytest.mark.parametrize("pipeline", ["untrained_pipeline", "untrained_experts"])
def test_whole_training_in_bf16_moves_weights_and_starts_at_ratio_one(request, tmp_path, pipeline):
    """On a CPU, where both passes round alike; LoRAs in both precisions: tests/test_families.py."""
    frames = {"policy.frames": 5} if pipeline == "untrained_experts" else {}
    changes = {"policy.precision": "bf16", "policy.max_sequence_length": 10, "optimizer.learning_rate": 1e-3} | frames
    trained(toy_config("otca", request.getfixturevalue(pipeline), **changes), tmp_path)
    row = pd.read_csv(tmp_path / "train.csv").iloc[0]
    assert row["update_norm"] > 0 and row["first_ratio_deviation"] == 0


def test_nothing_is_trained_where_nothing_is_to_be(request, untrained_pipeline, tmp_path):
    """To sample, all of a model is in inference precision; a training with it is refused in one line."""
    policy = build_policy(config_of(request, "untrained_pipeline", precision="bf16", tuning="none"))
    assert policy.trainable_parameters() == [] and policy.pipeline.transformer.dtype == torch.bfloat16
    with pytest.raises(InputError, match="policy.tuning is none, which trains nothing; use full or lora"):
        trainer_of(toy_config("otca", untrained_pipeline, **{"policy.tuning": "none"}), tmp_path)


# --------------------------------------------------------------------------------------------------- prompts on disk


def test_encodings_from_disk_are_those_of_the_encoders(request, name, tmp_path):
    plain = build_policy(config_of(request, name)).encode(TEXTS)
    policy = build_policy(config_of(request, name, prompt_cache=str(tmp_path)))
    assert policy.pipeline.text_encoder is None
    policy.encode_ahead(TEXTS)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3  # two texts, and the empty one that guidance asks for
    again = build_policy(config_of(request, name, prompt_cache=str(tmp_path)))
    again.texts.encode = lambda texts: pytest.fail(f"encoded {texts} again")
    for one in (policy, again):
        for ours, theirs in zip(one.encode(TEXTS).parts, plain.parts, strict=True):
            assert torch.equal(ours, theirs)


def test_each_text_is_on_disk_before_the_next_is_encoded(tmp_path):
    """So that no more than one encoding is held, and a kill loses no more than one."""

    def encode(texts):
        for text in texts:
            before.append(len(list(tmp_path.glob("*.safetensors"))))
            if text == "c":
                raise KeyboardInterrupt
            yield (torch.ones(2),)

    before: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        TextCache(encode, "toy", tmp_path, torch.device("cpu")).write(["a", "b", "c"])
    assert before == [0, 1, 2]


def test_training_encodes_its_prompts_before_it_starts(untrained_pipeline, tmp_path):
    """And ends with the weights that it has without a cache."""
    for cache in ("", str(tmp_path / "cache")):
        changes = {"policy.prompt_cache": cache, "iterations": 2, "sampler.steps": 3}
        trainer = trainer_of(toy_config("otca", untrained_pipeline, **changes), tmp_path / f"run{len(cache)}")
        made, encode = [], trainer.policy.texts.encode
        trainer.policy.texts.encode = lambda texts, made=made, encode=encode: made.append(texts) or encode(texts)
        trainer.run()
        assert len(made) == 1 if cache else len(made) > 1
    first, second = (pd.read_csv(path) for path in sorted(tmp_path.glob("run*/train.csv")))
    pd.testing.assert_frame_equal(first, second)


def test_memory_keeps_the_newest_texts(request, monkeypatch):
    policy = build_policy(config_of(request, "untrained_pipeline"))
    one = sum(part.nbytes for part in policy.texts.get(["a"])[0])
    monkeypatch.setattr("otca.models.texts.MEMORY_BYTES", 2 * one)
    policy.encode(["a", "b"]), policy.encode(["a"]), policy.encode(["c"])
    assert list(policy.texts.kept) == ["a", "c"]


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "path, rewards", [("embedded:image", TrainConfig().rewards), ("embedded:video", presets.preset("video/quick")["rewards"])]
)
def test_sliced_decoding_does_not_change_the_reward(path, rewards):
    prompts, media = load_prompts(f"{path}/train", 2), []
    for sliced in (False, True):
        policy = build_policy(PolicyConfig(path=path, vae_slicing=sliced))
        batch = make_batch(prompts, [0, 1], 2, ("sliced",))
        sampled = rollout(policy, batch, ode_plan(4, 3.0, 4))
        media.append(sampled.media_BFCHW)
    assert policy.pipeline.vae.use_slicing
    torch.testing.assert_close(*media, rtol=0, atol=1e-5)
    whole, parts = (score_all([build_reward(r) for r in rewards], m, batch.prompts).reward_BK for m in media)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-3)


def test_checkpointing_changes_no_gradient(request, name):
    gradients = []
    for checkpointing in (False, True):
        policy = build_policy(config_of(request, name, tuning="lora", gradient_checkpointing=checkpointing))
        latents = policy.noise([torch.Generator().manual_seed(0)])
        policy.velocity(latents, torch.tensor([0.7]), policy.encode(TEXTS[:1])).square().mean().backward()
        gradients.append([p.grad for p in policy.trainable_parameters()])
    assert any(float(g.abs().max()) > 0 for g in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=1e-7)
