"""Two processes on gloo give what one gives: weights, rows and counts; a launch that accelerate does not see is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import ran

ROOT = Path(__file__).parent.parent


def train(folder, pipeline, processes, *changes, use_cpu="true", command=("-m", "otca", "train"), **switches):
    """Three iterations of `python -m otca train` in so many processes; returns the finished process."""
    settings = {
        "out": folder,
        "method": "otca",
        "policy.path": pipeline,
        "rewards": "[tests.test_baselines:Red,tests.test_baselines:Blue]",
        "prompts_per_iteration": 4,
        "group_size": 4,
        "micro_batch": 4,
        "iterations": 3,
        "sampler.steps": 4,
        "save_every": 3,
        "optimizer.learning_rate": 1e-3,
    }
    command = [*command, *(f"--{key}={value}" for key, value in settings.items()), *changes]
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return ran([sys.executable, *launcher, *command], ACCELERATE_USE_CPU=use_cpu, **switches)


WAN = ("--policy.frames=5", "--policy.max_sequence_length=10", "--iterations=2", "--save_every=2")
CASES = {
    "otca": ("untrained_pipeline", ()),
    "sampled": ("untrained_pipeline", ("--credit.sampled_steps=2", "--method=process_credit")),
    "experts": ("untrained_experts", WAN),
    "one expert": ("untrained_experts", (*WAN, "--step_selection.kind=first_k", "--step_selection.count=1")),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(request, tmp_path, case):
    """After all updates the weights agree to 1e-5, and so do all rows (what is counted, exactly)."""
    name, changes = CASES[case]
    pipeline = request.getfixturevalue(name)
    for processes in (1, 2):
        done = train(tmp_path / str(processes), pipeline, processes, *changes)
        assert done.returncode == 0, done.stderr[-3000:]
    [newest] = sorted((tmp_path / "1" / "checkpoints").iterdir())[-1:]
    moved = {}
    for part in sorted(path.name for path in newest.glob("transformer*")):
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        one, two = (load_file(tmp_path / n / "checkpoints" / newest.name / weights) for n in "12")
        start = load_file(Path(pipeline) / weights)
        assert max(float((one[key] - two[key]).abs().max()) for key in one) <= 1e-5
        moved[part] = max(float((one[key] - start[key]).abs().max()) for key in one)
    trained = {"transformer"} if case == "one expert" else set(moved)
    assert {part for part, by in moved.items() if by > 1e-3} == trained
    rows_one, rows_two = (pd.read_csv(tmp_path / n / "train.csv") for n in "12")
    np.testing.assert_allclose(rows_one, rows_two, rtol=1e-4, atol=1e-5)
    for column in ("iteration", "network_evaluations", "reward_calls", "dead_groups"):
        assert rows_one[column].tolist() == rows_two[column].tolist()
    assert done.stdout.count("trained") == 1  # the main process speaks alone


ENDED = """
import sys
from otca import cli
from otca.distributed import process_state
from tests.processes import gloo_workers

process_state()
before = gloo_workers()
cli.train(sys.argv[1:])
print(f"{before > 0} {gloo_workers()}\\n", end="")
"""


def test_no_worker_of_gloo_outlives_the_command(untrained_pipeline, tmp_path):
    """One that still held a tensor would abort the interpreter as it ends, after the last file is written."""
    script = tmp_path / "ended.py"
    script.write_text(ENDED)
    done = train(tmp_path / "out", untrained_pipeline, 2, command=(script,), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("True 0\n") == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate does see the processes")
def test_processes_that_accelerate_does_not_see_are_refused(untrained_pipeline, tmp_path):
    """Without its CPU switch accelerate would let every process train the same folder alone."""
    done = train(tmp_path / "out", untrained_pipeline, 2, use_cpu="false")
    assert done.returncode != 0 and "WORLD_SIZE is 2, but accelerate sees 1 process" in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate does shard")
def test_sharding_that_accelerate_drops_is_refused(untrained_pipeline, tmp_path, processes):
    """On CPU, FSDP asked for by the launcher's environment silently becomes DDP."""
    done = train(tmp_path / "out", untrained_pipeline, processes, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert done.returncode != 0 and "ACCELERATE_USE_FSDP asks for FSDP, but accelerate runs" in done.stderr
    assert not (tmp_path / "out" / "train.csv").exists()
