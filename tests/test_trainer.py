"""The training loop on an untrained pipeline: ratio, resume, loud rewards, KL, LoRA, determinism (invariants 1, 2, 6, 7)."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from torch.autograd.graph import saved_tensors_hooks

from baselines import find_method
from otca.checkpoint import checkpoints, load_weights
from otca.config import CreditConfig, LossConfig, TrainConfig
from otca.errors import InputError, RewardError
from otca.export import export_weights
from otca.methods import assign_credit
from otca.models.base import build_policy
from tests.test_baselines import record
from tests.toys import Brightness, toy_config, trained, trainer_of, weights


def config(pipeline: str, method: str = "otca", **changes) -> TrainConfig:
    """Two iterations of eight samples and three steps."""
    sizes = {"iterations": 2, "group_size": 4, "micro_batch": 2, "sampler.steps": 3, "save_every": 1}
    return toy_config(method, pipeline, **sizes | changes)


@pytest.mark.parametrize(
    "changes",
    [{"sampler.kind": "dance_sde", "sampler.level": 0.3}, {"method": "uniform_grpo", "sampler.kind": "cps", "sampler.steps": 4}],
)
def test_ratio_is_exactly_one_before_the_first_update(untrained_pipeline, tmp_path, changes):
    """Invariant 1: 0 log-ratio in fp32 in every iteration, although weights moved in between."""
    trainer = trained(config(untrained_pipeline, **changes), tmp_path)
    rows = pd.read_csv(tmp_path / "train.csv")
    assert rows["first_ratio_deviation"].tolist() == [0, 0]
    assert (rows["update_norm"] > 0).all()
    assert torch.isfinite(weights(trainer)).all()


def test_rows_and_costs(untrained_pipeline, tmp_path):
    """8 samples × (3 rollout + 2 trained steps × 3) = 72 network evaluations and 16 reward calls an iteration."""
    trained(config(untrained_pipeline), tmp_path)
    rows = pd.read_csv(tmp_path / "train.csv")
    assert rows["iteration"].tolist() == [0, 1]
    assert rows["network_evaluations"].tolist() == [72, 144]
    assert rows["reward_calls"].tolist() == [16, 32]
    phases = {"sampling", "decode", "rewards", "credit", "update"}
    assert set(pd.read_csv(tmp_path / "timing.csv")) == {"iteration", "total"} | phases


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_stopped_and_resumed_equals_uninterrupted(untrained_pipeline, tmp_path, tuning):
    """Same weights and rows, bit for bit, averages included."""
    lora = {"policy.tuning": tuning, "policy.lora_rank": 2, "policy.lora_alpha": 8.0}
    settings = {"optimizer.ema_decay": 0.5} | lora
    whole = trained(config(untrained_pipeline, **settings), tmp_path / "whole")
    trained(config(untrained_pipeline, **settings, iterations=1), tmp_path / "parts")
    with open(tmp_path / "parts" / "train.csv", "a") as file:
        file.write("1,torn row")  # what a kill in the middle of a write leaves
    again = trained(config(untrained_pipeline, **settings), tmp_path / "parts")
    assert torch.equal(weights(whole), weights(again))
    assert all(torch.equal(a, b) for a, b in zip(whole.updater.average, again.updater.average))
    assert (tmp_path / "whole" / "train.csv").read_text() == (tmp_path / "parts" / "train.csv").read_text()


def test_update_memory_does_not_grow_with_steps(untrained_pipeline, tmp_path):
    """Each (transition, micro-batch) frees its graph: activations alive at any time are those of one pair."""

    def peak(steps):
        alive = {"now": 0, "peak": 0}

        class Held:
            def __init__(self, tensor):
                self.tensor = tensor
                alive["now"] += tensor.numel()
                alive["peak"] = max(alive["peak"], alive["now"])

            def __del__(self):
                alive["now"] -= self.tensor.numel()

        trainer = trainer_of(config(untrained_pipeline, **{"sampler.steps": steps}), tmp_path / str(steps))
        with saved_tensors_hooks(Held, lambda held: held.tensor):
            trainer.step()
        return alive["peak"]

    assert peak(8) == peak(3)


def test_kl_pulls_back_to_the_reference(untrained_pipeline, tmp_path):
    """Invariant 6: after the first update the KL is positive, and a heavy one leaves the weights closer to the start."""
    free = trained(config(untrained_pipeline, iterations=3), tmp_path / "free")
    held = trained(config(untrained_pipeline, iterations=3, **{"loss.kl_beta": 1e4}), tmp_path / "held")
    rows = pd.read_csv(tmp_path / "held" / "train.csv")
    assert rows["kl"].iloc[0] >= 0 and rows["kl"].iloc[1:].min() > 0
    start = torch.cat([r.flatten() for r in held.updater.reference])
    assert (weights(held) - start).norm() < (weights(free) - start).norm()
    assert rows["network_evaluations"].iloc[0] == 72 + 16


class Broken(Brightness):
    """Says what it is told from its second call on."""

    name, calls, answer = "broken", 0, None

    def score(self, media_BFCHW, prompts):
        type(self).calls += 1
        if type(self).calls == 1:
            return super().score(media_BFCHW, prompts)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    "answer, said",
    [
        (torch.full((8,), float("nan")), "NaN or Inf"),
        (torch.zeros(8, 1), "shape"),
        (RuntimeError("server gone"), "server gone"),
    ],
)
def test_bad_rewards_stop_the_run_after_a_checkpoint(untrained_pipeline, tmp_path, monkeypatch, answer, said):
    """Invariant 7: the message names the reward and a prompt; the state before the bad iteration is kept."""
    monkeypatch.setattr(Broken, "calls", 0)
    monkeypatch.setattr(Broken, "answer", answer)
    with pytest.raises(RewardError, match="broken") as caught:
        trained(config(untrained_pipeline, rewards=["tests.test_trainer:Broken"], save_every=100), tmp_path)
    assert said in str(caught.value) and "train-0-" in str(caught.value)
    assert [p.name for p in checkpoints(tmp_path)] == ["iteration_000001"]
    assert len(pd.read_csv(tmp_path / "train.csv")) == 1


def test_whole_weights_load_in_the_stock_pipeline(untrained_pipeline, tmp_path):
    """What a run saves gives the same image through diffusers alone; LoRAs: tests/test_families.py."""
    trainer = trained(config(untrained_pipeline, **{"optimizer.learning_rate": 1e-2}), tmp_path)
    base, stock = (FluxPipeline.from_pretrained(untrained_pipeline) for _ in range(2))
    stock.register_modules(transformer=FluxTransformer2DModel.from_pretrained(checkpoints(tmp_path)[-1] / "transformer"))
    given = {"latents": trainer.policy.noise([torch.Generator().manual_seed(5)]), "height": 64, "width": 64}
    given |= {"prompt": "a red circle", "num_inference_steps": 3, "max_sequence_length": 16, "output_type": "pt"}
    own, theirs, before = (pipeline(**given).images for pipeline in (trainer.policy.pipeline, stock, base))
    torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(before, own, atol=1e-4)


def test_trackers_write_when_asked_and_what_is_absent_is_named(untrained_pipeline, tmp_path, monkeypatch):
    trained(config(untrained_pipeline, iterations=1, trackers=["tensorboard"]), tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for changes, said in (
        ({"trackers": ["wandb"]}, "wandb is not installed; run pip install wandb"),
        ({"policy.precision": "fp16"}, "fp16, which needs a GPU"),
    ):
        with pytest.raises(InputError, match=said):
            trainer_of(config(untrained_pipeline, **changes), tmp_path / "other")


# ------------------------------------------------------------------------------------------------ methods on records


def assign(name, rewards_BK, **changes):
    made, scores = record(rewards_BK)
    settings = TrainConfig(rewards=["x"] * rewards_BK.shape[1], **changes)
    return assign_credit(find_method(name), made, scores, settings)


def test_multi_reward_rules_agree_where_they_must():
    """Invariant 2: the same bits with K = 1; with ρ = 1 MOCA is static; OTCA has TCD's steps and MOCA's objectives."""
    one, three = (torch.rand(8, k, generator=torch.Generator().manual_seed(k)) for k in (1, 3))
    uniform, static, moca = (assign(n, one).advantage_TB for n in ("uniform_grpo", "static_multi_reward", "otca_moca"))
    assert torch.equal(uniform, static) and torch.equal(static, moca)
    moca = assign("otca_moca", three, credit=CreditConfig(rho=1.0)).advantage_TB
    assert torch.equal(moca, assign("static_multi_reward", three).advantage_TB)
    full, tcd, moca = (assign(n, three) for n in ("otca", "otca_tcd", "otca_moca"))
    torch.testing.assert_close(full.credit_TBK, tcd.credit_TBK.sum(2, keepdim=True) * moca.credit_TBK)
    torch.testing.assert_close(tcd.credit_TBK.sum(2)[:-1].mean(0), torch.ones(8))


def test_constant_groups_train_nothing_and_advantages_are_clipped_and_matched():
    rewards_BK = torch.rand(8, 3, generator=torch.Generator().manual_seed(4))
    assert assign("otca", rewards_BK, loss=LossConfig(advantage_clip=0.1)).advantage_TB.abs().max() <= 0.1
    matched = assign("otca", rewards_BK, credit=CreditConfig(match_rms=True)).advantage_TB[:3]
    static = assign("static_multi_reward", rewards_BK).advantage_TB[:3]
    torch.testing.assert_close(matched.square().mean(), static.square().mean())
    rewards_BK[4:] = 0.3
    for name in ("otca", "uniform_grpo", "static_multi_reward"):
        made = assign(name, rewards_BK)
        assert torch.equal(made.advantage_TB[:, 4:], torch.zeros(4, 4)) and made.diagnostics["dead_groups"] == 1
        assert made.advantage_TB[:, :4].abs().sum() > 0


def test_the_average_is_judged_where_one_is_kept(untrained_pipeline, tmp_path):
    """An average that hardly moves validates as the start does; a checkpoint holds both; every switch gives its own."""
    validation = {"every": 1, "source": "embedded:image/validation", "prompts": 2, "samples_per_prompt": 1, "steps": 3}
    changes = {f"validation.{name}": value for name, value in validation.items()}
    changes |= {"optimizer.learning_rate": 1e-3, "optimizer.ema_decay": 0.999999}
    settings = config(untrained_pipeline, rewards=["tests.toys:Brightness"], **changes)
    trainer = trained(settings, tmp_path)
    scores = pd.read_csv(tmp_path / "validation.csv")["mean_brightness"]
    assert scores.max() - scores.min() < 1e-5
    raw, average = weights(trainer), torch.cat([w.flatten() for w in trainer.updater.average])
    for which, averaged, expected in (("auto", True, average), ("average", True, average), ("raw", False, raw)):
        policy = build_policy(settings.policy)
        assert load_weights(checkpoints(tmp_path)[-1], policy, which) == averaged
        torch.testing.assert_close(torch.cat([p.detach().flatten() for p in policy.trainable_parameters()]), expected)
    policy = build_policy(settings.policy)
    load_weights(checkpoints(tmp_path)[-1], policy)
    export_weights(policy, tmp_path / "export")
    exported = load_file(tmp_path / "export/transformer/diffusion_pytorch_model.safetensors")
    names = [name for name, p in policy.network.named_parameters() if p.requires_grad]
    assert torch.equal(torch.cat([exported[name].flatten() for name in names]), average)
    assert trainer.judge("raw") is False and torch.equal(weights(trainer), raw)
    assert trainer.judge() is True and torch.equal(weights(trainer), average)
    plain = trained(config(untrained_pipeline, iterations=1), tmp_path / "plain")
    assert plain.judge() is False
    with pytest.raises(InputError, match="has no averaged weights; train with optimizer.ema_decay"):
        plain.judge("average")
