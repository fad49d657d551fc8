"""Weights in shards on two processes (gloo): they train as whole ones do, are saved whole, and one process goes on from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import nn

from baselines import find_method
from otca.config import PolicyConfig, TrainConfig
from otca.distributed import check_dropped_plugin, keep_inputs_whole
from otca.errors import InputError
from otca.models.base import build_policy
from otca.sharding import shard_precision
from otca.trainer import Trainer
from tests.processes import ran
from tests.toys import REWARDS, toy_settings

ROOT = Path(__file__).parent.parent
SETTINGS = {
    "prompts_per_iteration": 4,
    "group_size": 4,
    "micro_batch": 4,
    "iterations": 2,
    "sampler.steps": 4,
    "save_every": 1,
    "optimizer.learning_rate": 1e-3,
    "optimizer.ema_decay": 0.9,
    "loss.kl_beta": 0.1,
}


def train_sharded(folder: Path, settings: dict, processes: int = 2) -> str:
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "tests.sharded_run"]
    done = ran([sys.executable, *command, folder, json.dumps(settings)], ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train_whole(folder: Path, settings: dict) -> Trainer:
    trainer = Trainer(TrainConfig.from_dotted(settings), find_method(settings["method"]), folder)
    trainer.run()
    return trainer


CASES = {
    "flux": ("untrained_pipeline", {}),
    "flux, sampled steps": ("untrained_pipeline", {"method": "process_credit", "credit.sampled_steps": 2, "iterations": 3}),
    "wan-experts-lora": ("untrained_experts", {"policy.tuning": "lora", "policy.frames": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_whole_weights_and_one_process_goes_on(request, tmp_path, case):
    name, changes = CASES[case]
    settings = toy_settings("otca", request.getfixturevalue(name)) | SETTINGS | changes
    out = train_sharded(tmp_path / "sharded", settings)
    trained = len(build_policy(TrainConfig.from_dotted(settings).policy).trainable_parameters())
    assert f"{trained} of {trained} sharded" in out
    train_whole(tmp_path / "whole", settings)
    saved = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole" / "checkpoints").rglob("*.safetensors"))
    assert len(saved) >= 6  # weights, optimizer and average of two checkpoints
    moved = 0.0
    for path in saved:
        one, two = load_file(tmp_path / "whole" / path), load_file(tmp_path / "sharded" / path)
        assert one.keys() == two.keys()
        assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-5, path
        moved = max(moved, *(float(value.abs().max()) for value in one.values()))
    assert moved > 1e-3
    rows = [pd.read_csv(tmp_path / run / "train.csv") for run in ("whole", "sharded")]
    np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-5)

    longer = settings | {"iterations": settings["iterations"] + 1}
    last = [train_whole(tmp_path / run, longer) for run in ("whole", "sharded")]
    for one, two in zip(*(trainer.parameters for trainer in last), strict=True):
        assert float((one - two).detach().abs().max()) <= 1e-5


def test_a_sharded_run_resumes_from_its_own_checkpoint(untrained_pipeline, tmp_path):
    settings = toy_settings("otca", untrained_pipeline, **SETTINGS)
    train_sharded(tmp_path / "interrupted", settings)
    train_sharded(tmp_path / "interrupted", settings | {"iterations": 3})
    train_sharded(tmp_path / "straight", settings | {"iterations": 3})
    path = "checkpoints/iteration_000003/optimizer.safetensors"
    one, two = (load_file(tmp_path / run / path) for run in ("interrupted", "straight"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) == 0


GATHERED = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from otca.sharding import shard_precision
from tests.processes import leave


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1 + 2**-12]))

    def forward(self, timestep):
        print(timestep.item(), timestep.dtype, self.scale.dtype, self.scale.tolist())
        return (self.scale * timestep).sum()


dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
network = Level()
fully_shard(network, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)), mp_policy=shard_precision(torch.bfloat16))
network(torch.tensor(513.5)).backward()
print(network.scale.dtype, network.scale.grad.dtype)
leave()
"""


def test_shards_are_gathered_in_bf16_and_noise_levels_stay_whole():
    """accelerate's own choice would cast 513.5 to bf16, which is 512 or 516 there."""
    done = ran([sys.executable, "-c", GATHERED], 120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == ["513.5 torch.float32 torch.bfloat16 [1.0, 1.0]", "torch.float32 torch.float32"]


def test_the_first_version_of_fsdp_is_refused():
    """accelerate's default, whose flat weights nothing here can read; the second passes and gets its precision."""
    plugin = SimpleNamespace(mixed_precision_policy=None)
    launched = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False, state=SimpleNamespace(fsdp_plugin=plugin))
    with pytest.raises(InputError, match="version 1 of FSDP; set fsdp_version: 2"):
        check_dropped_plugin(launched)
    launched.is_fsdp2 = True
    check_dropped_plugin(launched)
    keep_inputs_whole(launched, torch.bfloat16)
    assert plugin.mixed_precision_policy == shard_precision(torch.bfloat16)


def test_networks_that_are_to_be_cut_stay_where_they_are_loaded(untrained_experts):
    """Only what is not trained goes to the device; on a GPU each process would otherwise hold both experts whole."""
    config = PolicyConfig(path=untrained_experts, frames=5, max_sequence_length=10)
    policy = build_policy(config, "meta", networks_on=torch.device("cpu"))
    parts = policy.pipeline.components
    assert {name for name, part in parts.items() if isinstance(part, nn.Module) and part.device.type != "meta"} == {
        "transformer",
        "transformer_2",
    }


@pytest.mark.skipif(not torch.cuda.is_available(), reason="accelerate refuses FSDP without a GPU")
def test_accelerate_shards_by_the_shipped_config(untrained_pipeline, tmp_path):
    """The launcher's own path, in one process: it trains and saves whole weights, near those of a plain run."""
    settings = {"method": "otca", "policy.path": untrained_pipeline, "rewards": f"[{','.join(REWARDS)}]", "sampler.steps": 4}
    settings |= {"prompts_per_iteration": 2, "group_size": 4, "micro_batch": 4, "save_every": 1, "optimizer.learning_rate": 1e-3}
    train = ["-m", "otca", "train", *(f"--{key}={value}" for key, value in settings.items())]
    launch = ["-m", "accelerate.commands.launch", "--config_file", "otca/launch/eight_gpus_fsdp2.yaml", "--num_processes", "1"]
    runs = {"whole": [train], "sharded": [[*launch, *train]]}
    for folder, [command] in runs.items():
        command = [sys.executable, *command, f"--out={tmp_path / folder}", "--iterations=2", "--policy.precision=bf16"]
        done = ran(command, 600)
        assert done.returncode == 0, done.stderr[-3000:]
    path = "checkpoints/iteration_000002/transformer/diffusion_pytorch_model.safetensors"
    one, two = (load_file(tmp_path / folder / path) for folder in runs)
    assert one.keys() == two.keys() and max(float((one[key] - two[key]).abs().max()) for key in one) < 5e-3
