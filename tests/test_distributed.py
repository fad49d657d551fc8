"""Two processes on gloo give what one gives, with weights whole and in shards; launches that would not are refused."""

from __future__ import annotations

import json
import shutil
import socket
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

from otca.__main__ import main
from otca.config import PolicyConfig, TrainConfig
from otca.distributed import check_launch, shard_precision
from otca.errors import InputError
from otca.models.base import build_policy
from tests.processes import ran
from tests.toys import REWARDS, toy_settings, trained

SETTINGS = {"prompts_per_iteration": 4, "group_size": 2, "micro_batch": 2, "sampler.steps": 3, "save_every": 1}
SETTINGS |= {"optimizer.learning_rate": 1e-3, "optimizer.ema_decay": 0.9, "loss.kl_beta": 0.1}
WAN = {"policy.frames": 5, "policy.max_sequence_length": 10}
CASES = {
    "sampled-steps": ("toy_pipeline", {"method": "process_credit", "credit.sampled_steps": 1}, False),
    "value-head": ("toy_pipeline", {"method": "value_head", "iterations": 2}, False),
    "one-expert": ("untrained_experts", WAN | {"step_selection.kind": "first_k", "step_selection.count": 1}, False),
    "otca-sharded": ("toy_pipeline", {}, True),
    "experts-lora-sharded": ("untrained_experts", WAN | {"policy.tuning": "lora"}, True),
}


@pytest.fixture(scope="module")
def launched(request, tmp_path_factory):
    """One launch of two processes that runs a command, trains every case, and goes on with the sharded one.

    Settings by case, folder, output.
    """
    root, settings, runs = tmp_path_factory.mktemp("two"), {}, []
    changes = {"out": root / "command", "rewards": f"[{','.join(REWARDS)}]", "sampler.steps": 3}
    command = toy_settings("otca", request.getfixturevalue("toy_pipeline"), **changes, **{"optimizer.updates_per_iteration": 1})
    for name, (pipeline, changes, sharded) in CASES.items():
        settings[name] = toy_settings("otca", request.getfixturevalue(pipeline)) | SETTINGS | changes
        runs.append({"folder": str(root / name), "settings": settings[name], "sharded": sharded})
    longer = settings["otca-sharded"] | {"iterations": 2}
    runs += [{"folder": str(root / name), "settings": longer, "sharded": True} for name in ("straight", "otca-sharded")]
    arguments = [f"--{key}={value}" for key, value in command.items()]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.launched_runs"]
    done = ran([*launcher, json.dumps(arguments), json.dumps(runs), port], 550, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    return settings, root, done.stdout


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case, launched, tmp_path):
    """After all updates the weights agree to 1e-5, and so do all rows (what is counted, exactly)."""
    settings, root, out = launched
    count = len(trained(TrainConfig.from_dotted(settings[case]), tmp_path).parameters)
    assert f"{case}: {count if CASES[case][2] else 0} of {count} sharded" in out
    saved = sorted((tmp_path / "checkpoints/iteration_000001").rglob("*.safetensors"))
    assert len(saved) >= 3  # weights, optimizer and average
    moved = {}
    for path in saved:
        one, two = load_file(path), load_file(root / case / path.relative_to(tmp_path))
        assert one.keys() == two.keys()
        assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-5, path
        if path.name == "diffusion_pytorch_model.safetensors":
            start = load_file(Path(settings[case]["policy.path"]) / path.parent.name / path.name)
            moved[path.parent.name] = max(float((one[key] - start[key]).abs().max()) for key in one)
    assert {part for part, by in moved.items() if by > 1e-4} == ({"transformer"} if moved else set())
    rows = [pd.read_csv(of / "train.csv")[:1] for of in (tmp_path, root / case)]
    np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-5)
    for column in ("iteration", "network_evaluations", "reward_calls", "dead_groups"):
        assert rows[0][column].tolist() == rows[1][column].tolist()


def test_a_sharded_run_resumes_from_its_own_checkpoint_and_one_process_from_it(launched, tmp_path):
    settings, root, _ = launched
    path = "checkpoints/iteration_000002/optimizer.safetensors"
    one, two = (load_file(root / run / path) for run in ("otca-sharded", "straight"))
    assert max(float((one[key] - two[key]).abs().max()) for key in one) == 0
    folder = shutil.copytree(root / "otca-sharded", tmp_path / "run")
    shutil.rmtree((folder / path).parent)
    trained(TrainConfig.from_dotted(settings["otca-sharded"] | {"iterations": 2}), folder)
    alone = load_file(folder / path)
    assert max(float((one[key] - alone[key]).abs().max()) for key in one) <= 1e-5


def test_shards_are_gathered_in_bf16_and_no_worker_of_gloo_outlives_the_command(launched):
    """accelerate's own choice would cast the noise level 513.5 to bf16, which is 512 or 516 there.

    A worker that still held a tensor would abort the interpreter as it ends, after the last file is written.
    """
    assert launched[2].count("level: 513.5 torch.float32 torch.bfloat16 [1.0, 1.0]\n") == 2
    assert launched[2].count("gradient: torch.float32 torch.float32\n") == 2
    assert launched[2].count("True 0\n") == 2
    assert launched[2].count("trained") == 1  # the main process speaks alone


# ------------------------------------------------------------------------------------------------ launches that are refused
def test_processes_that_accelerate_does_not_see_are_refused(monkeypatch):
    """Without its CPU switch accelerate would let every process train the same folder alone."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE is 2, but accelerate sees 1 process"):
        check_launch(SimpleNamespace(num_processes=1, distributed_type=DistributedType.NO), torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate does shard")
def test_sharding_that_accelerate_drops_is_refused(toy_pipeline, tmp_path, monkeypatch, capsys):
    """On CPU, FSDP asked for by the launcher's environment silently becomes something else."""
    for name, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", "2"), ("ACCELERATE_USE_CPU", "true")):
        monkeypatch.setenv(name, value)
    assert main(["train", f"--policy.path={toy_pipeline}", f"--out={tmp_path / 'out'}"]) == 2
    assert "ACCELERATE_USE_FSDP asks for FSDP, but accelerate runs" in capsys.readouterr().err
    assert not (tmp_path / "out" / "train.csv").exists()


def test_the_first_version_of_fsdp_is_refused():
    """accelerate's default, whose flat weights nothing here can read; the second passes and gets its precision."""
    plugin = SimpleNamespace(mixed_precision_policy=None)
    state = SimpleNamespace(fsdp_plugin=plugin)
    launched = SimpleNamespace(distributed_type=DistributedType.FSDP, is_fsdp2=False, state=state, num_processes=1)
    with pytest.raises(InputError, match="version 1 of FSDP; set fsdp_version: 2"):
        check_launch(launched, torch.bfloat16)
    launched.is_fsdp2 = True
    check_launch(launched, torch.bfloat16)
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
