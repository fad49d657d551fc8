"""What is planned is what is measured: memory by the allocator's own record, evaluations, FLOPs, published sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from baselines import find_method
from otca.__main__ import main
from otca.config import PolicyConfig, TrainConfig
from otca.errors import InputError
from otca.models.base import build_policy
from otca.plan import _reward_bytes, plan
from otca.shapes import empty_pipeline, empty_policy
from otca.trainer import Trainer
from tests.killed import finish
from tests.toys import toy_config

SIZES = {"prompts_per_iteration": 2, "group_size": 4, "micro_batch": 4, "sampler.steps": 4}
VIDEO = {"policy.frames": 5, "policy.max_sequence_length": 10, "prompts": "embedded:video/train", "sampler.steps": 2}
LORA = {"policy.tuning": "lora", "policy.precision": "bf16", "policy.gradient_checkpointing": True}
CASES = {
    "reference and average": ("embedded:image", "process_credit", {"loss.kl_beta": 0.1, "optimizer.ema_decay": 0.9}),
    "LoRA, checkpointing": ("embedded:image", "otca", LORA),
    "video": ("untrained_wan", "otca", VIDEO),
}


def config_of(name: str, changes: dict, pipeline: str) -> tuple[TrainConfig, object]:
    return toy_config(name, pipeline, **SIZES | changes), find_method(name)


def measured_peak(trainer: Trainer) -> int:
    """Bytes that live at once, at most, in a second iteration, by the profiler's record of the CPU allocator."""
    trainer.step()
    parts = [part for part in trainer.policy.pipeline.components.values() if isinstance(part, nn.Module)]
    held = [p for part in parts for p in part.parameters()] + trainer.updater.reference + trainer.updater.average
    held += [value for state in trainer.optimizer.state_dict()["state"].values() for value in state.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer.step()
    live = peak = sum(tensor.numel() * tensor.element_size() for tensor in held)
    events = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@pytest.mark.parametrize("case", CASES)
def test_planned_memory_is_within_15_percent_of_what_is_measured(request, tmp_path, case):
    pipeline, name, changes = CASES[case]
    config, method = config_of(name, changes, pipeline if ":" in pipeline else request.getfixturevalue(pipeline))
    planned, trainer = plan(config, method), Trainer(config, method, tmp_path)
    assert planned.peak == pytest.approx(measured_peak(trainer), rel=0.15)
    assert planned.evaluations * 2 == trainer.progress.network_evaluations
    assert planned.reward_calls * 2 == trainer.progress.reward_calls
    assert planned.trained == sum(p.numel() for p in trainer.parameters)


def test_planned_flops_are_those_of_real_passes(toy_pipeline):
    config, method = config_of("static_multi_reward", {"policy.max_sequence_length": 10}, toy_pipeline)
    policy = build_policy(config.policy)
    x, sigma_B, condition = policy.noise([torch.Generator()]), torch.ones(1), policy.encode(["a red circle"])
    with FlopCounterMode(display=False) as forward:
        velocity = policy.velocity(x, sigma_B, condition)
    with FlopCounterMode(display=False) as decode:
        policy.decode(x)
    with FlopCounterMode(display=False) as backward:
        velocity.mean().backward()
    one, both = forward.get_total_flops(), forward.get_total_flops() + backward.get_total_flops()
    found = plan(config, method).flops
    assert one > 1e6 and found["sampling"] == 8 * 4 * one and found["update"] == 8 * 3 * both
    assert found["decoding"] == 8 * decode.get_total_flops()


def test_forked_processes_can_train_after_a_plan(toy_pipeline):
    """Workers of a table are forked; PyTorch's pretended GPU would have left a thread of autograd in their parent."""

    def gradient() -> int:
        x = torch.ones(2, requires_grad=True)
        (x * x).sum().backward()
        return 0 if x.grad.tolist() == [2, 2] else 1

    plan(*config_of("otca", {}, toy_pipeline))
    assert gradient() == 0
    finish(gradient)


def test_shards_divide_what_can_be_divided(toy_pipeline):
    config, method = config_of("otca", {"loss.kl_beta": 0.1, "prompts_per_iteration": 4}, toy_pipeline)
    alone, spread = plan(config, method, 2), plan(config, method, 2, "fsdp2")
    for part in ("optimizer", "copies of trained weights"):
        assert spread.memory[part] == alone.memory[part] // 2
    assert spread.memory["gradients"] * 4 == alone.memory["gradients"]  # DDP's buckets are a second copy
    network = build_policy(config.policy).pipeline.transformer
    blocks = (*network.transformer_blocks, *network.single_transformer_blocks)  # one of each kind, both gathered at a time
    gathered = sum(4 * p.numel() for block in blocks for p in block.parameters())
    assert spread.memory["transformer weights"] == alone.memory["transformer weights"] // 2 + gathered
    parts = empty_policy(config.policy)[1].values()
    assert spread.host == alone.host == sum(4 * p.numel() for part in parts for p in part.parameters())
    assert spread.memory["rollout record"] == alone.memory["rollout record"] and spread.evaluations == alone.evaluations


BILLIONS = {
    "black-forest-labs/FLUX.1-dev": 11.90,
    "stabilityai/stable-diffusion-3.5-medium": 2.24,
    "stabilityai/stable-diffusion-3.5-large": 8.06,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": 1.42,
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": 14.29,
}
"""Parameters of one transformer, as its model card or the sizes of its weight files give them."""


@pytest.mark.parametrize("path", BILLIONS)
def test_published_architectures_have_their_size_and_an_adapter(path):
    pipeline = empty_pipeline(path, {"default": torch.bfloat16})
    count = sum(p.numel() for p in pipeline.transformer.parameters())
    assert count / 1e9 == pytest.approx(BILLIONS[path], abs=0.006)
    assert (getattr(pipeline, "transformer_2", None) is not None) == ("A14B" in path)
    frames = 53 if "Wan" in path else 0
    policy = build_policy(PolicyConfig(path=path, frames=frames, height=512, width=512), "meta", pipeline)
    assert all(p.is_meta for p in policy.trainable_parameters())


def test_the_command_prints_every_part_and_refuses_what_cannot_be(capsys):
    assert main(["plan", "--preset=image/quick", "--rewards=[alignment,nowhere:Hps]"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "parameters: 529,184 trained",
        "peak while updating",
        "fits h100 (80 GB)",
        "not in it: the networks of nowhere:Hps",
        "14 iterations, 73,472 network evaluations",
        "hours on 1 × h100",
    ):
        assert expected in out
    assert _reward_bytes(["videoalign_vq", "videoalign_ta"])[0] / 2**30 == pytest.approx(4.28, abs=0.005)  # one network
    for arguments, message in (
        (["--gpu=abacus"], "gpu is 'abacus'; choose from h200"),
        (["--utilisation=2"], "utilisation is 2.0; it must lie in (0, 1]"),
        (["--sharding=zero9"], "sharding is 'zero9'; choose from none, fsdp2"),
        (["--processes=3"], "prompts_per_iteration is 8: the 8 prompts of one update must be a multiple of the 3 processes"),
        (["--policy.path=some/model"], "its architecture is not known"),
    ):
        assert main(["plan", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_folder_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(InputError, match="no model_index.json there"):
        plan(*config_of("otca", {}, str(tmp_path)))
