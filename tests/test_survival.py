"""Killed, stopped or damaged anywhere and started again, a training ends with the files of one that was not."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import time

import pandas as pd
import pytest
import torch
from accelerate import Accelerator

import otca.checkpoint
import otca.files
import otca.sampling
import otca.trainer
from otca.__main__ import main
from otca.checkpoint import checkpoints, remove_prunable
from otca.errors import InputError
from otca.runs import RowLog
from otca.signals import LAST_CALL
from otca.validation import Validation, best_iteration, rows_of
from tests.killed import code_of, content, dying, start, wait_for
from tests.toys import Red

ITERATIONS = 3


def command(pipeline: str, folder, *more: str) -> list[str]:
    """A training with everything that has a state: moments, averages, a value head, a validation, old checkpoints that go."""
    settings = {
        "method": "value_head",
        "policy.path": pipeline,
        "out": folder,
        "iterations": ITERATIONS,
        "rewards": "[tests.toys:Brightness,tests.toys:Red]",
        "prompts_per_iteration": 2,
        "group_size": 2,
        "micro_batch": 2,
        "sampler.steps": 3,
        "optimizer.updates_per_iteration": 2,
        "save_every": 1,
        "keep_last": 2,
        "loss.kl_beta": 0.1,
        "optimizer.ema_decay": 0.5,
        "optimizer.learning_rate": 1e-3,
        "validation.every": 2,
        "validation.prompts": 2,
        "validation.samples_per_prompt": 1,
        "validation.steps": 2,
    }
    return ["train", *(f"--{key}={value}" for key, value in settings.items()), *more]


@pytest.fixture(scope="module")
def whole(toy_pipeline, tmp_path_factory):
    """A finished run of two checkpoints and the best, which nothing disturbed, and the seconds it took."""
    folder, started = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    assert main(command(toy_pipeline, folder)) == 0
    return folder, time.monotonic() - started


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it to damage."""
    return shutil.copytree(whole[0], tmp_path / "run")


# --------------------------------------------------------------------------------------------------------------- killed
PHASES = {
    "rollout": (otca.sampling, "_trajectories", 3, False),
    "scoring": (Red, "score", 3, False),
    "backward": (Accelerator, "backward", 11, True),
    "optimizer step": (torch.optim.AdamW, "step", 3, True),
    "row without its time": (RowLog, "append", 5, False),
    "validation": (Validation, "_scored", 2, False),
    "checkpoint half-written": (otca.checkpoint, "save_file", 4, True),
    "checkpoint not in place": (otca.files, "write_hashes", 2, True),
    "old checkpoint half-removed": (otca.checkpoint, "remove_prunable", 3, False),
}
"""Where it dies: in (before, after) the nth call of a function."""
EVERY_TIME = ("optimizer step", "checkpoint half-written")


@pytest.mark.parametrize("phase", [p if p in EVERY_TIME else pytest.param(p, marks=pytest.mark.slow) for p in PHASES])
def test_killed_in_a_phase(phase, whole, toy_pipeline, tmp_path, monkeypatch):
    again = command(toy_pipeline, tmp_path / "run")
    with monkeypatch.context() as patched:
        dying(patched, *PHASES[phase])
        assert code_of(start(lambda: main(again))) == -signal.SIGKILL
    assert main(again) == 0
    assert content(tmp_path / "run") == content(whole[0])
    assert pd.read_csv(tmp_path / "run" / "train.csv")["iteration"].tolist() == list(range(ITERATIONS))
    assert len(pd.read_csv(tmp_path / "run" / "timing.csv")) == ITERATIONS


@pytest.mark.slow
@pytest.mark.parametrize("point", range(4))
def test_killed_at_a_random_point(point, whole, toy_pipeline, tmp_path):
    again = command(toy_pipeline, tmp_path / "run")
    pid = start(lambda: main(again))
    time.sleep(random.Random(point).uniform(0.02, 0.98) * whole[1])
    os.kill(pid, signal.SIGKILL)
    code_of(pid)
    assert main(again) == 0
    assert content(tmp_path / "run") == content(whole[0])


# -------------------------------------------------------------------------------------------------------------- signals
def reached(folder) -> int:
    """Rows in train.csv."""
    with contextlib.suppress(FileNotFoundError, pd.errors.EmptyDataError):
        return len(pd.read_csv(folder / "train.csv"))
    return 0


@pytest.mark.parametrize("number, said", [(signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "interrupted")])
def test_signals_leave_an_iterations_end(number, said, whole, toy_pipeline, tmp_path):
    """Exit code 128 + signal within 30 seconds, a checkpoint of the last iteration's end, and no trace at the end."""
    folder = tmp_path / "run"
    seldom = command(toy_pipeline, folder, "--save_every=4", "--validation.every=0")
    pid = start(lambda: main(seldom), tmp_path / "said")
    wait_for(lambda: reached(folder) >= 1)
    os.kill(pid, number)
    started = time.monotonic()
    assert code_of(pid) == 128 + number and time.monotonic() - started < LAST_CALL + 2
    done, last = reached(folder), (tmp_path / "said").read_text().splitlines()[-1]
    assert 1 <= done < ITERATIONS and (folder / f"checkpoints/iteration_{done:06d}").is_dir()
    assert last.endswith(f"otca train: {said}; the same command goes on from iteration {done}")
    assert main(seldom) == 0
    left, right = content(folder), content(whole[0])
    newest = [name for name in right if f"iteration_{ITERATIONS:06d}" in name]
    assert newest and {name: left[name] for name in newest} == {name: right[name] for name in newest}
    assert left["train.csv"] == right["train.csv"]


def test_a_signal_in_an_update_waits_for_its_end(toy_pipeline, tmp_path, monkeypatch):
    """Between the first optimizer step and the row the weights belong to no iteration's end."""
    folder, original = tmp_path / "run", torch.optim.AdamW.step

    def step(self, *args, **kwargs):
        out = original(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return out

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    assert main(command(toy_pipeline, folder)) == 143
    assert reached(folder) == 1 and (folder / "checkpoints/iteration_000001").is_dir()


# -------------------------------------------------------------------------------------------------------------- damaged
def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "bit flipped": (lambda path: flip(path / "optimizer.safetensors"), "optimizer.safetensors is damaged: expected SHA-256"),
    "cut short": (lambda path: os.truncate(path / "average.safetensors", 1000), "average.safetensors is damaged"),
    "file missing": (lambda path: (path / "state.json").unlink(), "state.json is missing"),
    "hashes missing": (lambda path: (path / "sha256.json").unlink(), "sha256.json not found"),
    "hashes cut short": (lambda path: os.truncate(path / "sha256.json", 20), "sha256.json cannot be read: not JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_next_older_checkpoint_taken(damage, copy):
    spoil, said = DAMAGES[damage]
    newest, older = checkpoints(copy)[-1], checkpoints(copy)[-2]
    spoil(newest)
    found, [line] = otca.checkpoint.latest_valid_checkpoint(copy)
    assert found == older and said in line


def test_a_run_ends_as_before_after_damage(copy, whole, toy_pipeline, caplog, capsys):
    flip(checkpoints(copy)[-1] / "optimizer.safetensors")
    assert main(command(toy_pipeline, copy)) == 0
    assert "is damaged" in caplog.text and f"going on from iteration_{ITERATIONS - 1:06d} instead" in caplog.text
    assert content(copy) == content(whole[0])
    for path in checkpoints(copy):
        flip(path / "optimizer.safetensors")
    before = content(copy)
    assert main(command(toy_pipeline, copy)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no checkpoint is whole" in line and line.endswith("restore one, or delete the folder to start anew")
    assert content(copy) == before


def test_rows_that_lack_a_row_are_named(tmp_path):
    """A checkpoint of iteration 5 and rows of fewer: going on would leave a gap. A line that was cut short is none."""
    log = RowLog(tmp_path / "rows.csv")
    for n in range(3):
        log.append({"iteration": n, "value": 0.5})
    with open(tmp_path / "rows.csv", "a") as file:
        file.write("3,0.")
    with pytest.raises(InputError, match=r"rows of 3 iterations, and the checkpoint is of 5"):
        RowLog(tmp_path / "rows.csv", 5)
    RowLog(tmp_path / "rows.csv", 2).append({"iteration": 2, "value": 0.25})
    assert (tmp_path / "rows.csv").read_text() == "iteration,value\n0,0.5\n1,0.5\n2,0.25\n"
    (tmp_path / "rows.csv").write_text("<html>\nnot found\n")
    with pytest.raises(InputError, match=r"rows\.csv has a row that begins with 'not found' and not with an iteration"):
        RowLog(tmp_path / "rows.csv", 2)


def test_a_list_of_prompts_that_was_edited_is_noticed(toy_pipeline, tmp_path, capsys):
    path = tmp_path / "list.txt"
    argv = command(toy_pipeline, tmp_path / "run", f"--prompts={path}", "--override-config", "--iterations")
    path.write_text("a cat\na dog\n")
    assert main([*argv, "1"]) == 0
    path.write_text("a cat\na cow\n")
    assert main([*argv, "2"]) == 2 and reached(tmp_path / "run") == 1
    assert f"prompts {path} are not those that {tmp_path / 'run'} was trained on so far" in capsys.readouterr().err


def test_another_config_is_refused_unless_overridden(copy, whole, toy_pipeline, untrained_pipeline, capsys):
    other = command(toy_pipeline, copy, f"--iterations={ITERATIONS + 1}", "--optimizer.learning_rate=2e-3")
    assert main(other) == 2
    said = capsys.readouterr().err
    assert "iterations: 3 → 4; optimizer.learning_rate: 0.001 → 0.002" in said and "--override-config" in said
    assert content(copy) == content(whole[0])
    foreign = f"--policy.path={untrained_pipeline}"
    assert main([*other, "--override-config", foreign]) == 2 and "is of another model than policy.path" in capsys.readouterr().err
    assert content(copy) == content(whole[0])
    assert main([*other, "--override-config"]) == 0
    [line] = (copy / "overridden.jsonl").read_text().splitlines()
    assert json.loads(line) == {"iteration": 3, "changed": ["iterations: 3 → 4", "optimizer.learning_rate: 0.001 → 0.002"]}
    assert reached(copy) == 4 and main(other) == 0


def test_the_best_and_any_other_checkpoint_are_sampled_from(copy, tmp_path, capsys):
    rows = pd.read_csv(copy / "validation.csv").set_index("iteration")
    assert rows.index.tolist() == [0, 2, 3] and rows["score"][0] == 0
    gain = {n: (rows[f"mean_{n}"][2] - rows[f"mean_{n}"][0]) / rows[f"std_{n}"][0] for n in ("brightness", "red")}
    assert rows["score"][2] == pytest.approx(sum(gain.values()) / 2, rel=1e-5)
    assert best_iteration(rows_of(copy)) == rows["score"].idxmax()

    def sampled(which, code=0) -> str | bytes:
        folder = tmp_path / which
        small = ["--eval.prompts=1", "--eval.samples_per_prompt=1", "--eval.steps=2", f"--out={folder}"]
        assert main(["sample", f"--run={copy}", f"--checkpoint={which}", *small]) == code
        return capsys.readouterr().err if code else next(folder.glob("*.png")).read_bytes()

    rows.assign(score=[0, 1, 0]).to_csv(copy / "validation.csv")
    assert sampled("last") == sampled("3") != sampled("best") == sampled("2")
    assert f"checkpoint 'worst' of {copy} is not there (there are: last, best, " in sampled("worst", 2)
    rows.assign(score=[1, 0, 0]).to_csv(copy / "validation.csv")
    assert "is the model before training; sample it without --run" in sampled("best", 2)
    for rubbish in (b"\xff\n", b"iteration,score\n0,x\n", b"iteration\n0\n"):
        (copy / "validation.csv").write_bytes(rubbish)
        assert "validation.csv holds no validations (" in sampled("best", 2)
    (copy / "validation.csv").unlink()
    assert "train with validation.every" in sampled("best", 2)


def test_a_full_disk_leaves_the_older_checkpoints(copy, toy_pipeline, tmp_path):
    """A limit on file sizes between the sizes of weights and moments stands for the disk that is full in the middle."""
    before = {name: digest for name, digest in content(copy).items() if name.startswith("checkpoints/")}
    sizes = {p.name: p.stat().st_size for p in checkpoints(copy)[-1].rglob("*.safetensors")}
    weights, moments = sizes["diffusion_pytorch_model.safetensors"], sizes["optimizer.safetensors"]
    assert weights < moments
    again = command(toy_pipeline, copy, f"--iterations={ITERATIONS + 1}", "--override-config")

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((weights + moments) // 2,) * 2)
        return main(again)

    assert code_of(start(limited, tmp_path / "said")) == 2
    last = (tmp_path / "said").read_text().splitlines()[-1]
    assert re.search(r"iteration_000004 could not be written \(.* MiB free.*\); the older checkpoints are whole", last)
    assert {name: digest for name, digest in content(copy).items() if name.startswith("checkpoints/")} == before
    assert main(again) == 0 and reached(copy) == 4


@pytest.mark.parametrize(
    "found, best, gone",
    [
        ([1, 2, 3, 4], None, [1, 2]),
        ([1, 2, 3, 4], 1, [2]),
        ([2, 4, 5], None, [2]),
        ([2, 3, 4], None, [3]),  # 3 was written on the way out
        ([2], 2, []),
    ],
)
def test_which_checkpoints_stay(found, best, gone, tmp_path):
    for n in found:
        (tmp_path / f"checkpoints/iteration_{n:06d}").mkdir(parents=True)
    remove_prunable(tmp_path, 1 if found == [1, 2, 3, 4] else 2, 2, best)
    assert [otca.checkpoint.iteration_of(path) for path in checkpoints(tmp_path)] == [n for n in found if n not in gone]


def test_copies_of_checkpoints_by_other_names_are_passed_over(tmp_path):
    for name in ("iteration_000002", "iteration_000002 (copy)", "iteration_best"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in checkpoints(tmp_path)] == ["iteration_000002"]
