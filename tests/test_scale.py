"""What a user reads before launching at scale: presets, recipes, launchers' configs, dry runs."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from torch import nn

from baselines import find_method
from otca import presets
from otca.plan import RECIPES, describe_recipes
from otca.prompts import LISTS
from otca.shapes import PUBLISHED
from reproduce import benchmark
from reproduce.dry_run import preflight
from reproduce.table import TABLES, arms_of, main

ROOT = Path(__file__).parent.parent
LAUNCH = sorted((ROOT / "otca" / "launch").glob("*.yaml"))


@pytest.mark.parametrize("name", presets.TRAIN)
def test_every_preset_resolves_and_names_what_exists(name):
    config = presets.train_config(name, "otca", find_method("otca").settings, 0)
    path, prompts = config.policy.path, config.prompts
    assert path.startswith("embedded:") or (path in PUBLISHED and config.policy.precision == "bf16")
    assert prompts.startswith("embedded:") or Path(prompts).stem in LISTS
    assert config.micro_batch <= config.prompts_per_iteration * config.group_size
    if name.endswith("/paper"):
        evaluation = presets.eval_config(name)
        assert Path(evaluation.source).stem in LISTS and evaluation.steps == 50


@pytest.mark.parametrize("path", LAUNCH, ids=[path.stem for path in LAUNCH])
def test_launchers_configs_are_read_by_accelerate(path):
    config = load_config_from_file(str(path))
    text = path.read_text()
    assert str(config.distributed_type).rpartition(".")[2] == yaml.safe_load(text)["distributed_type"]
    assert config.num_processes == yaml.safe_load(text)["num_processes"] and f"otca/launch/{path.name}" in text
    assert bool(config.fsdp_config) == ("fsdp2" in path.stem)
    if config.fsdp_config:
        assert config.fsdp_config["fsdp_version"] == 2


def config_of(recipe):
    return presets.train_config(recipe.preset, recipe.method, find_method(recipe.method).settings, 0)


def test_recipes_name_presets_and_launchers_that_exist_and_share_evenly():
    for recipe in RECIPES:
        config, (processes, sharding) = config_of(recipe), recipe.machine
        assert ("fsdp" in recipe.launch) == (sharding == "fsdp2")
        per_update = config.prompts_per_iteration // config.optimizer.updates_per_iteration
        assert per_update % processes == 0
        assert (per_update // processes * config.group_size) % config.micro_batch == 0


def test_recipes_are_described_by_their_plans(monkeypatch):
    """What is planned for a recipe's machine stands in its line."""
    recipe, asked = next(recipe for recipe in RECIPES if recipe.preset == "image/sd35m-lora"), []
    numbers = {"peak": 17.25 * 2**30, "host": 2**34, "iterations": 300, "evaluations": 1234567}
    made = SimpleNamespace(fits=lambda gigabytes: gigabytes == 24, hours=lambda *_: 7.0, **numbers)
    monkeypatch.setattr("otca.plan.plan", lambda *given: asked.append(given) or made)
    said = describe_recipes(find_method, (recipe,))
    assert asked == [(config_of(recipe), find_method(recipe.method), *recipe.machine)]
    assert re.search(r" 17\.2 +yes \(24 GB\) +16 +300 +1,234,567 +7\n", said)
    assert said.endswith(f"--preset {recipe.preset} --method {recipe.method}\n") and "rewards --fetch hpsv2" in said


def test_a_dry_run_says_what_is_there_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("")
    assert main("table1", "", ["--dry-run"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "table1, quick tier: 8 runs, 8 of them missing",
        "model embedded:image: in the package",
        "training prompts embedded:image/train: 1,200",
        "evaluation prompts embedded:image/test: 120 × 2 samples",
        "processes: 1",
        "440,832 network evaluations",
        "time left: unknown as yet",
    ):
        assert expected in out
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_dry_run_says_what_is_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30 - 1, 1))
    assert main("table1", "", ["--tier", "paper", "--dry-run"]) == 2
    out = capsys.readouterr().out
    assert "model black-forest-labs/FLUX.1-dev: not here; the first run downloads it from the hub" in out
    assert "in the way: training prompts prompts/dancegrpo_image.txt" in out and "prompts --list dancegrpo_image`" in out
    for metric in presets.eval_config("image/paper").held_out:  # what is only judged by would be missed after the training
        assert f"in the way: held-out metric {metric}: " in out
    assert "models, in bf16 31." in out  # FLUX.1-dev: 11.9 B and its encoders 4.9 B parameters, two bytes each
    assert "in the way: disk: " in out and "0.0 GiB free; make room" in out


@pytest.mark.parametrize("tier", ["quick", "cpu", "paper"])
def test_a_dry_run_of_a_tier_resolves_every_table(tmp_path, monkeypatch, capsys, tier):
    """What the embedded tiers need is in the package; the paper's lists and rewards are named where they are missing."""
    monkeypatch.chdir(tmp_path)
    tables = [table for table in TABLES.values() if tier != "paper" or not table.name.startswith("ablations/")]
    arms = [arm for arm in arms_of(tables, tier) if arm.seed == 0]
    code, out = preflight("all", tier, arms, tmp_path / "runs"), capsys.readouterr().out
    assert code == (2 if tier == "paper" else 0), out
    assert ("in the way: " in out) == (tier == "paper") and f"{len(arms)} runs, {len(arms)} of them missing" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_a_micro_batch_that_does_not_divide(monkeypatch, capsys):
    monkeypatch.setitem(presets.TRAIN, "image/quick", presets.TRAIN["image/quick"] | {"micro_batch": 33})
    assert preflight("table1", "quick", TABLES["table1"].arms("quick"), Path("elsewhere")) == 2
    assert "micro_batch is 33; it must divide the 128 samples of one update" in capsys.readouterr().out


def test_a_published_size_is_measured_anywhere(toy_pipeline, tmp_path, monkeypatch):
    """What runs on a GPU at FLUX.1-dev's size runs on a toy's here, with random weights and no text encoders."""
    few = {"policy.path": toy_pipeline, "prompts_per_iteration": 2, "group_size": 4, "micro_batch": 4, "sampler.steps": 4}
    monkeypatch.setitem(presets.TRAIN, "image/quick", presets.TRAIN["image/quick"] | few)
    out = tmp_path / "speed.json"
    out.write_text('{"kept": {}}')
    assert benchmark.main(["--preset", "image/quick", "--iterations", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert "kept" in found and found["image/quick_planned_gib"]["value"] > 0
    seconds = {name: found[f"image/quick_{name}_seconds"]["value"] for name in ("sampling", "update", "total")}
    assert 0 < seconds["sampling"] < seconds["total"] and seconds["update"] > 0


def test_the_share_inside_networks_leaves_the_rest_out():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    network[1].register_forward_pre_hook(lambda *_: time.sleep(0.05))
    seconds, share = benchmark.share_inside_networks(lambda: (network(torch.zeros(1, 4)), time.sleep(0.05)))
    assert seconds > 0.1 and share == pytest.approx(0.5, abs=0.1)
    assert benchmark.share_inside_networks(lambda: time.sleep(0.01))[1] == 0
