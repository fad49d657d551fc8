"""What a run does when its files are damaged, its disk is full, its gradient is not finite, or its memory runs out."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import resource
import shutil
import subprocess

import pandas as pd
import pytest
import torch
from safetensors import safe_open

from baselines import find_method
from otca.__main__ import main
from otca.checkpoint import checkpoints
from otca.config import TrainConfig
from otca.errors import InputError, RewardError, TrainingError
from otca.files import verify_hashes
from otca.memory import memory_named
from otca.trainer import Trainer
from otca.update import REFUSED, Updater
from otca.validation import best_iteration
from tests.killed import code_of, content, start
from tests.test_survival import command
from tests.toys import toy_settings


@pytest.fixture(scope="module")
def whole(untrained_pipeline, tmp_path_factory):
    """A finished run of two checkpoints and the best, which nothing disturbed; a test changes its own copy."""
    folder = tmp_path_factory.mktemp("damage") / "run"
    assert main(command(untrained_pipeline, folder)) == 0
    return folder


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
def test_an_older_checkpoint_is_taken_and_the_run_ends_as_before(damage, whole, untrained_pipeline, tmp_path, caplog):
    folder, (spoil, said) = tmp_path / "run", DAMAGES[damage]
    shutil.copytree(whole, folder)
    spoil(checkpoints(folder)[-1])
    assert main(command(untrained_pipeline, folder)) == 0
    assert said in caplog.text and "going on from iteration_000003 instead" in caplog.text
    assert content(folder) == content(whole)


def test_no_whole_checkpoint_is_an_error(whole, untrained_pipeline, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for path in checkpoints(folder):
        flip(path / "optimizer.safetensors")
    before = content(folder)
    assert main(command(untrained_pipeline, folder)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "no checkpoint is whole" in line and line.endswith("restore one, or delete the folder to start anew")
    assert content(folder) == before


def test_lost_rows_are_named(whole, untrained_pipeline, tmp_path, capsys):
    """A checkpoint of iteration 4 and rows of fewer: going on would leave a gap."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    lines = (folder / "train.csv").read_text().splitlines(keepends=True)
    (folder / "train.csv").write_text("".join(lines[:3]))
    assert main(command(untrained_pipeline, folder)) == 2
    assert "train.csv has rows of 2 iterations, and the checkpoint is of 4" in capsys.readouterr().err


def test_another_config_is_refused_unless_overridden(whole, untrained_pipeline, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    other = command(untrained_pipeline, folder, "--iterations=5", "--optimizer.learning_rate=2e-3")
    assert main(other) == 2
    said = capsys.readouterr().err
    assert "iterations: 4 → 5; optimizer.learning_rate: 0.001 → 0.002" in said and "--override-config" in said
    assert content(folder) == content(whole)
    assert main([*other, "--override-config"]) == 0
    [line] = (folder / "overridden.jsonl").read_text().splitlines()
    assert json.loads(line) == {"iteration": 4, "changed": ["iterations: 4 → 5", "optimizer.learning_rate: 0.001 → 0.002"]}
    assert len(pd.read_csv(folder / "train.csv")) == 5 and main(other) == 0


def test_the_best_and_any_other_checkpoint_are_sampled_from(whole, tmp_path, capsys):
    rows = pd.read_csv(whole / "validation.csv").set_index("iteration")
    assert rows.index.tolist() == [0, 2, 4] and rows["score"][0] == 0
    gain = {n: (rows[f"mean_{n}"][4] - rows[f"mean_{n}"][0]) / rows[f"std_{n}"][0] for n in ("brightness", "redness")}
    assert rows["score"][4] == pytest.approx(sum(gain.values()) / 2, rel=1e-5)
    best = best_iteration(whole)
    assert best == rows["score"].idxmax()
    small = ["--eval.prompts=1", "--eval.samples_per_prompt=1", "--eval.steps=2"]

    def sampled(which):
        assert main(["sample", f"--run={whole}", f"--checkpoint={which}", f"--out={tmp_path / which}", *small]) == 0
        [file] = (tmp_path / which).glob("*.png")
        return file.read_bytes()

    assert sampled("last") == sampled("4") != sampled("3")
    for which in ("9", "worst"):
        assert main(["sample", f"--run={whole}", f"--checkpoint={which}", f"--out={tmp_path}", *small]) == 2
        kind = "last, best" if best else "last"  # the untrained model may be the best, which no checkpoint holds
        said = f"checkpoint '{{}}' of {{}} is not there (there are: {kind}, {{}})"
        kept = ", ".join(str(int(path.name[-6:])) for path in checkpoints(whole))
        assert said.format(which, whole, kept) in capsys.readouterr().err


def test_the_best_in_validation_can_be_sampled(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    small = [f"--run={folder}", "--checkpoint=best", f"--out={tmp_path}", "--eval.prompts=1", "--eval.steps=2"]
    rows = pd.read_csv(folder / "validation.csv")
    for best, code, said in ((4, 0, "wrote 2 media"), (0, 2, "is the model before training; sample it without --run")):
        rows.assign(score=(rows["iteration"] == best).astype(float)).to_csv(folder / "validation.csv", index=False)
        assert main(["sample", *small]) == code
        told = capsys.readouterr()
        assert said in told.out + told.err
    (folder / "validation.csv").unlink()
    assert main(["sample", *small]) == 2 and "train with validation.every" in capsys.readouterr().err


def limited(number: int, function) -> int:
    """Run a function with a limit on the size of files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    return function()


def test_a_full_disk_leaves_the_older_checkpoint(untrained_pipeline, tmp_path):
    """A limit on file sizes between the sizes of weights and moments stands for the disk that is full in the middle."""
    folder = tmp_path / "run"
    assert main(command(untrained_pipeline, folder, "--iterations=2")) == 0
    before = {name: digest for name, digest in content(folder).items() if name.startswith("checkpoints/")}
    sizes = {p.name: p.stat().st_size for p in checkpoints(folder)[-1].rglob("*.safetensors")}
    weights, moments = sizes["diffusion_pytorch_model.safetensors"], sizes["optimizer.safetensors"]
    assert weights < moments
    again = command(untrained_pipeline, folder, "--override-config")
    assert code_of(start(lambda: limited((weights + moments) // 2, lambda: main(again)), tmp_path / "said")) == 2
    last = (tmp_path / "said").read_text().splitlines()[-1]
    needed = re.search(r"iteration_000003 needs ([0-9.]+) MiB and could not be written \(.*\); the older", last)
    assert float(needed[1]) * 2**20 == pytest.approx(sum(sizes.values()), rel=0.02)
    after = {name: digest for name, digest in content(folder).items() if name.startswith("checkpoints/")}
    assert after == before
    assert main(again) == 0 and len(pd.read_csv(folder / "train.csv")) == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 11 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=11m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_small_disk_fills_up(small_disk, untrained_pipeline, capsys):
    """The first checkpoint finds room, a later one does not; it says how much is needed, and what was there is whole."""
    assert main(command(untrained_pipeline, small_disk / "run", "--optimizer.ema_decay=0")) == 2
    assert re.search(
        r"needs [0-9.]+ MiB and could not be written \(there is less room; [0-9.]+ MiB free", capsys.readouterr().err
    )
    kept = checkpoints(small_disk / "run")
    assert kept
    for path in kept:
        verify_hashes(path)


# ---------------------------------------------------------------------------------------------------- not finite, no memory
def toy_trainer(pipeline, folder, method="static_multi_reward", **changes):
    settings = toy_settings(method, pipeline, **{"optimizer.updates_per_iteration": 1, "rewards": TOYS} | changes)
    return Trainer(TrainConfig.from_dotted(settings), find_method(method), folder)


TOYS = ["tests.test_trainer:Brightness", "tests.test_trainer:Redness"]


def exploding(monkeypatch, updates):
    """The gradients of these updates (counted from 0) are infinite."""
    original, count = Updater._accumulate_share, iter(range(100))

    def accumulate(self, *args):
        original(self, *args)
        if next(count) in updates:
            self.parameters[0].grad.fill_(float("inf"))

    monkeypatch.setattr(Updater, "_accumulate_share", accumulate)


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(untrained_pipeline, tmp_path, monkeypatch):
    exploding(monkeypatch, {1, 3})
    trainer = toy_trainer(untrained_pipeline, tmp_path, iterations=5, patience=2)
    weights = []
    trainer.run(lambda row: weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters])))
    rows = pd.read_csv(tmp_path / "train.csv")
    assert rows["skipped_updates"].tolist() == [0, 1, 0, 1, 0]
    assert [torch.equal(a, b) for a, b in itertools.pairwise(weights)] == [True, False, True, False]
    assert torch.isfinite(weights[-1]).all() and not (tmp_path / REFUSED).exists()
    assert rows["update_norm"][[1, 3]].tolist() == [0, 0] and rows["gradient_norm"][[1, 3]].tolist() == [math.inf] * 2


def test_patience_ends_and_the_batch_is_kept(untrained_pipeline, tmp_path, monkeypatch):
    exploding(monkeypatch, {1, 2, 3})
    trainer = toy_trainer(untrained_pipeline, tmp_path, iterations=9, patience=3)
    with pytest.raises(
        TrainingError, match=r"not finite in 3 updates in a row \(patience\), the last in iteration 3.*learning_rate"
    ):
        trainer.run()
    with safe_open(tmp_path / REFUSED, "pt") as file:
        about, latents = file.metadata(), file.get_tensor("latents_SB")
    assert about["iteration"] == "3" and len(json.loads(about["prompts"])) == latents.shape[1] == 6
    assert checkpoints(tmp_path)[-1].name == "iteration_000003"  # what was skipped changed nothing
    state = json.loads((checkpoints(tmp_path)[-1] / "state.json").read_text())
    assert state["skipped_in_a_row"] == 3


class Constant:
    """A reward that says the same of everything."""

    name, range, source, licence, revision = "constant", (0.0, 1.0), "test", "", ""

    def score(self, media_BFCHW, prompts):
        return torch.full((len(media_BFCHW),), 0.1)


def test_a_constant_reward_is_warned_of_and_then_stops_the_run(untrained_pipeline, tmp_path, caplog):
    settings = {"rewards": ["tests.test_damage:Constant", TOYS[0]], "iterations": 9, "patience": 3}
    with pytest.raises(RewardError, match=r"'constant' was the same for all samples in 3 iterations in a row \(patience\)"):
        toy_trainer(untrained_pipeline, tmp_path, **settings).run()
    assert [record.getMessage() for record in caplog.records if "constant" in record.getMessage()] == [
        f"iteration {n}: reward 'constant' was the same for all samples in {n + 1} iterations in a row" for n in (0, 1)
    ]
    assert len(pd.read_csv(tmp_path / "train.csv")) == 3
    with pytest.raises(RewardError, match="in 4 iterations"):  # the same command does not begin to count anew
        toy_trainer(untrained_pipeline, tmp_path, **settings).run()
    toy_trainer(untrained_pipeline, tmp_path / "for ever", **settings | {"patience": 0, "iterations": 4}).run()


def test_what_memory_was_lacking_for_is_named(untrained_pipeline, tmp_path, monkeypatch):
    trainer = toy_trainer(untrained_pipeline, tmp_path, iterations=2, micro_batch=3)

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(trainer.updater, "_backward", full)
    wanted = (
        r"out of memory in the backward pass of step 0: lower micro_batch \(3\) or set policy.gradient_checkpointing \(CUDA out"
    )
    with pytest.raises(TrainingError, match=wanted):
        trainer.run()
    assert checkpoints(tmp_path)[-1].name == "iteration_000000"


def test_memory_of_the_cpu_too():
    with pytest.raises(TrainingError, match=r"out of memory here: lower that \(.*allocate"), memory_named("here", "that"):
        torch.empty(2**60)
    with pytest.raises(RuntimeError, match="another fault"), memory_named("here", "that"):
        raise RuntimeError("another fault")


def test_sampling_and_decoding_are_named(untrained_pipeline, tmp_path, monkeypatch):
    def full(*args):
        raise MemoryError

    for name, said in (("velocity", "sampling 3 samples"), ("decode", "decoding 3 samples")):
        trainer = toy_trainer(untrained_pipeline, tmp_path / name, micro_batch=3)
        monkeypatch.setattr(trainer.policy, name, full)
        with pytest.raises(TrainingError, match=rf"out of memory {said}: lower micro_batch"):
            trainer.run()


def test_rows_that_lack_a_row_are_refused(tmp_path):
    from otca.tracking import RowLog

    log = RowLog(tmp_path / "rows.csv")
    for n in range(3):
        log.append({"iteration": n, "value": 0.5})
    with pytest.raises(InputError, match=r"rows of 3 iterations, and the checkpoint is of 5"):
        RowLog(tmp_path / "rows.csv", 5)
