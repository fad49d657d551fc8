"""Weights in shards on two processes (gloo): they train as whole ones do, are saved whole, and one process goes on from them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from otca.config import TrainConfig
from otca.methods import METHODS
from otca.policies.base import build_policy
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
    trainer = Trainer(TrainConfig.from_dotted(settings), METHODS[settings["method"]], folder)
    trainer.run()
    return trainer


CASES = {
    "flux": ("untrained_pipeline", {}),
    "wan-experts-lora": ("untrained_experts", {"policy.tuning": "lora", "policy.frames": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_shards_train_as_whole_weights_and_one_process_goes_on(request, tmp_path, case):
    name, changes = CASES[case]
    settings = toy_settings("otca", request.getfixturevalue(name), **(SETTINGS | changes))
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

    longer = settings | {"iterations": 3}
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
