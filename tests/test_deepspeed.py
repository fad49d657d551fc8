"""DeepSpeed's ZeRO-1 and 2 on two processes (gloo), by the shipped launch config: what one process trains and saves."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin, is_deepspeed_available
from safetensors.torch import load_file

from baselines import find_method
from otca import processes, zero
from otca.config import TrainConfig
from otca.errors import InputError
from otca.trainer import Trainer
from tests.processes import ran
from tests.toys import toy_settings

SETTINGS = {
    "prompts_per_iteration": 4,
    "group_size": 4,
    "micro_batch": 4,
    "iterations": 3,
    "sampler.steps": 4,
    "save_every": 1,
    "optimizer.learning_rate": 1e-3,
    "optimizer.gradient_clip": 0.01,
    "optimizer.ema_decay": 0.9,
    "loss.kl_beta": 0.1,
}
CASES = {
    "full": ("otca", {}),
    "lora": ("otca", {"policy.tuning": "lora", "policy.precision": "bf16", "optimizer.gradient_clip": 5e-4}),
    "sampled": ("process_credit", {"credit.sampled_steps": 2}),
    "lagged": ("diffusion_nft", {"step_selection.kind": "ode"}),
}
NOT_FINITE = {"optimizer.learning_rate": 1e25, "iterations": 1}

needs_deepspeed = pytest.mark.skipif(
    not is_deepspeed_available(), reason="DeepSpeed is not installed: pip install -r requirements.txt"
)


def train_zero(stage: int, runs: dict[Path, dict]) -> str:
    """One launch of two processes that trains each folder by its settings; returns what was printed."""
    launch = ["-m", "accelerate.commands.launch", "--config_file", "otca/launch/eight_gpus_deepspeed.yaml"]
    launch += ["--num_processes", 2, "--main_process_port", 0, "--zero_stage", stage, "-m", "tests.deepspeed_run"]
    told = json.dumps({str(folder): settings for folder, settings in runs.items()})
    done = ran([sys.executable, *launch, told], 600, CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("0 engines left\n")  # a table's next arm has the memory
    return done.stdout


def train_whole(folder: Path, settings: dict) -> None:
    AcceleratorState._reset_state()  # runs of one test differ in precision
    Trainer(TrainConfig.from_dotted(settings), find_method(settings["method"]), folder).run()


def largest_difference(one: Path, two: Path) -> float:
    """Over all tensors of two checkpoints, or of all checkpoints of two runs: trained weights, moments, average."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files and files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors"))
    worst = 0.0
    for path in files:
        left, right = load_file(one / path), load_file(two / path)
        assert left.keys() == right.keys() and {t.dtype for t in (*left.values(), *right.values())} == {torch.float32}
        worst = max(worst, *(float((left[key] - right[key]).abs().max()) for key in left))
    return worst


def compare(one: Path, two: Path, tolerance: float = 1e-5) -> None:
    """Runs agree in their weights, moments, averages and rows, and have moved by far more than the tolerance."""
    assert largest_difference(one, two) <= tolerance
    rows = [pd.read_csv(folder / "train.csv") for folder in (one, two)]
    np.testing.assert_allclose(*rows, rtol=1e-4, atol=1e-5)
    assert rows[1]["update_norm"].min() > 1e-2


@pytest.fixture(scope="module")
def settings(untrained_pipeline) -> dict[str, dict]:
    cases = {name: toy_settings(method, untrained_pipeline) | SETTINGS | more for name, (method, more) in CASES.items()}
    return cases | {"interrupted": cases["full"] | {"iterations": 2}, "not finite": cases["full"] | NOT_FINITE}


@pytest.fixture(scope="module")
def sharded(settings, tmp_path_factory) -> Path:
    """Folder of all runs under ZeRO-2, one launch."""
    folder = tmp_path_factory.mktemp("zero2")
    said = train_zero(2, {folder / name: given for name, given in settings.items()})
    assert "ZeRO-2: moments of 584160 of 1168320 weights" in said and "ZeRO-2: moments of 76800 of 153600 weights" in said
    return folder


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory) -> Path:
    """The same runs in one process, without DeepSpeed."""
    folder = tmp_path_factory.mktemp("whole")
    for name in (*CASES, "not finite"):
        train_whole(folder / name, settings[name])
    return folder


@needs_deepspeed
@pytest.mark.parametrize("case", CASES)
def test_zero2_trains_as_one_process(sharded, whole, case):
    compare(whole / case, sharded / case, 1e-4 if case == "lora" else 1e-5)  # bf16 rounds; seen: 9e-6, elsewhere 3e-7
    rows = pd.read_csv(sharded / case / "train.csv")
    assert case != "full" or (rows["gradient_norm"] > SETTINGS["optimizer.gradient_clip"]).all()  # so it clips


@needs_deepspeed
def test_a_step_without_a_finite_gradient_is_skipped_and_counted(sharded, whole):
    """The first update throws the weights far off, so the second one's gradient is not finite."""
    rows = [pd.read_csv(folder / "not finite" / "train.csv") for folder in (whole, sharded)]
    assert [row["skipped_updates"].tolist() for row in rows] == [[1], [1]] and rows[1]["gradient_norm"].tolist() == [np.inf]
    path = "not finite/checkpoints/iteration_000001/transformer/diffusion_pytorch_model.safetensors"
    one, two = load_file(whole / path), load_file(sharded / path)
    assert all(torch.isfinite(value).all() for value in two.values())
    assert max(float((one[key] - two[key]).abs().max() / one[key].abs().max()) for key in one) <= 1e-3


@needs_deepspeed
def test_runs_go_on_under_zero_and_without(settings, sharded, whole, tmp_path):
    longer = settings["full"] | {"iterations": 4}
    for name, source in (("zero to one", sharded), ("one to zero", whole), ("one", whole)):
        shutil.copytree(source / "full", tmp_path / name)
    train_zero(2, {sharded / "interrupted": settings["full"], tmp_path / "one to zero": longer})
    ends = "checkpoints/iteration_000003"
    assert largest_difference(sharded / "full" / ends, sharded / "interrupted" / ends) == 0
    train_whole(tmp_path / "one", longer)
    train_whole(tmp_path / "zero to one", longer)
    for name in ("one to zero", "zero to one"):
        compare(tmp_path / "one", tmp_path / name)


@needs_deepspeed
def test_zero1_trains_as_one_process(settings, whole, tmp_path):
    said = train_zero(1, {tmp_path / name: settings[name] for name in ("full", "sampled")})
    assert said.count("ZeRO-1: moments of 584160 of 1168320 weights") == 2
    for name in ("full", "sampled"):
        compare(whole / name, tmp_path / name)


def accelerator_with(**changes: object) -> SimpleNamespace:
    """As accelerate's, of two processes: the plugin it makes of a launch config, with changes to DeepSpeed's own settings."""
    plugin = DeepSpeedPlugin(zero_stage=2)
    plugin.deepspeed_config.update(changes)
    return SimpleNamespace(num_processes=2, state=SimpleNamespace(deepspeed_plugin=plugin))


REFUSED = {
    "zero_stage is 3; the trainer drives 1 and 2": {"zero_optimization": {"stage": 3}},
    "zero_stage is 0; the trainer drives 1 and 2": {"zero_optimization": {"stage": 0}},
    "offload_optimizer is to cpu": {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
    "a section scheduler": {"scheduler": {"type": "WarmupLR"}},
    "bf16 is enabled, which casts trained weights": {"bf16": {"enabled": True}},
    "gradient_clipping is 0.5, but the run's settings make it 1.0": {"gradient_clipping": 0.5},
    "gradient_accumulation_steps is 4, but the run's settings make it 1": {"gradient_accumulation_steps": 4},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_would_not_be_done_is_refused(message):
    with pytest.raises(InputError, match=message) as caught:
        zero.configure(accelerator_with(**REFUSED[message]), TrainConfig(), 4)
    assert "\n" not in str(caught.value)


def test_the_settings_of_each_run_rule():
    """Also those of a second run in the same process, to which accelerate gives the same plugin."""
    accelerator = accelerator_with()
    for clip, precision, micro_batch in ((1.0, "bf16", 4), (0.5, "no", 8)):
        given = TrainConfig.from_dotted({"optimizer.gradient_clip": clip, "policy.precision": precision})
        zero.configure(accelerator, given, micro_batch)
        made = accelerator.state.deepspeed_plugin.deepspeed_config
        assert (made["gradient_clipping"], made["gradient_accumulation_steps"]) == (clip, 1)
        assert (made["train_micro_batch_size_per_gpu"], made["train_batch_size"]) == (micro_batch, 2 * micro_batch)
        assert made["torch_autocast"]["enabled"] == (precision == "bf16")


def test_fp16_experts_and_a_missing_package_are_refused(monkeypatch):
    with pytest.raises(InputError, match="precision is fp16"):
        zero.configure(accelerator_with(), TrainConfig.from_dotted({"policy.precision": "fp16"}), 4)
    with pytest.raises(InputError, match="2 experts"):
        zero.prepare(accelerator_with(), SimpleNamespace(experts=2), None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(processes, "is_deepspeed_available", lambda: False)
    with pytest.raises(InputError, match="which is not installed: pip install"):
        processes.process_state()
