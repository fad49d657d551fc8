"""What a user reads before launching at scale: presets, recipes, launchers' configs, dry runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from baselines import find_method
from otca import presets
from otca.architectures import PUBLISHED
from otca.plan import plan
from otca.published_prompts import LISTS
from reproduce import recipes, speed_large, table1
from reproduce.all import TABLES
from reproduce.dry_run import preflight
from reproduce.recipes import RECIPES

ROOT = Path(__file__).parent.parent
LAUNCH = sorted((ROOT / "otca" / "launch").glob("*.yaml"))


@pytest.mark.parametrize("name", presets.TRAIN)
def test_every_preset_resolves_and_names_what_exists(name):
    config = presets.train_config(name, "otca", find_method("otca").settings, 0)
    path, prompts = config.policy.path, config.prompts
    assert path.startswith("embedded:") or path in PUBLISHED
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
    assert bool(config.deepspeed_config) == ("deepspeed" in path.stem)
    if config.deepspeed_config:
        assert config.deepspeed_config["zero_stage"] == 2 and config.mixed_precision == "bf16"
        assert config.num_machines == 1 or config.deepspeed_config["deepspeed_multinode_launcher"] == "standard"


def test_recipes_name_presets_and_launchers_that_exist_and_share_evenly():
    for recipe in RECIPES:
        config = presets.train_config(recipe.preset, recipe.method, find_method(recipe.method).settings, 0)
        launch = yaml.safe_load((ROOT / "otca" / "launch" / f"{recipe.launch}.yaml").read_text())
        assert launch["num_processes"] == recipe.processes and ("fsdp" in recipe.launch) == (recipe.sharding == "fsdp2")
        per_update = config.prompts_per_iteration // config.optimizer.updates_per_iteration
        assert per_update % recipe.processes == 0
        assert (per_update // recipe.processes * config.group_size) % config.micro_batch == 0
        assert f"--preset {recipe.preset} --method {recipe.method}" in recipe.command


def test_published_recipes_are_those_of_the_code_and_render(tmp_path, monkeypatch):
    rows = pd.read_csv(ROOT / recipes.ROWS, keep_default_na=False)
    assert rows["recipe"].tolist() == [recipe.title for recipe in RECIPES] and rows["fits"].all()
    (tmp_path / "results" / "plans").mkdir(parents=True)
    shutil.copy(ROOT / recipes.ROWS, tmp_path / recipes.ROWS)
    (tmp_path / "README.md").write_text("<!-- recipes -->\n<!-- /recipes -->\n")
    monkeypatch.chdir(tmp_path)
    assert recipes.main(["--render"]) == 0
    page = (tmp_path / "README.md").read_text()
    assert all(recipe.title in page and recipe.command in page for recipe in RECIPES)


def test_a_published_recipe_row_is_what_is_planned_today():
    row = pd.read_csv(ROOT / recipes.ROWS, keep_default_na=False).iloc[0]
    assert {key: pytest.approx(value, rel=1e-4) if isinstance(value, float) else value for key, value in row.items()} == {
        key: value for key, value in recipes.planned(RECIPES[0]).items()
    }


def test_a_dry_run_says_what_is_there_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("")
    assert table1.TABLE.main("", ["--dry-run"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "table1, quick tier: 12 runs, 12 of them missing",
        "model embedded:image: in the package",
        "training prompts embedded:image/train: 1,200",
        "evaluation prompts embedded:image/test: 120 × 2 samples",
        "processes: 1",
        "cost: 537,600 network evaluations",
    ):
        assert expected in out
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_dry_run_says_what_is_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 2**30 - 1, 1))
    assert table1.TABLE.main("", ["--tier", "paper", "--dry-run"]) == 2
    out = capsys.readouterr().out
    assert "model black-forest-labs/FLUX.1-dev: not here; the first run downloads it from the hub" in out
    assert "in the way: training prompts prompts/dancegrpo_image.txt" in out and "prompts --list dancegrpo_image`" in out
    for metric in presets.eval_config("image/paper").held_out:  # what is only judged by would be missed after the training
        assert f"in the way: held-out metric {metric}: " in out
    assert "models, in bf16 31." in out  # FLUX.1-dev: 11.9 B and its encoders 4.9 B parameters, two bytes each
    assert "in the way: disk: " in out and "0.0 GiB free; make room" in out


@pytest.mark.parametrize("tier", ["quick", "cpu", "paper"])
@pytest.mark.parametrize("table", TABLES, ids=[table.name for table in TABLES])
def test_a_dry_run_of_every_table_and_tier_resolves_all(tmp_path, monkeypatch, capsys, table, tier):
    """What the embedded tiers need is in the package; the paper's lists and rewards are named where they are missing."""
    if tier == "paper" and table.wide:
        pytest.skip("the ablations are of the embedded task")
    monkeypatch.chdir(tmp_path)
    arms = [arm for arm in table.arms(tier) if arm.seed == 0]
    code, out = preflight(table.name, tier, arms, tmp_path / "runs"), capsys.readouterr().out
    assert code == (2 if tier == "paper" else 0), out
    assert ("in the way: " in out) == (tier == "paper") and f"{len(arms)} runs, {len(arms)} of them missing" in out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_names_a_micro_batch_that_does_not_divide(monkeypatch, capsys):
    monkeypatch.setitem(presets.TRAIN, "image/quick", presets.TRAIN["image/quick"] | {"micro_batch": 33})
    assert preflight("table1", "quick", table1.TABLE.arms("quick"), Path("elsewhere")) == 2
    assert "micro_batch is 33; it must divide the 64 samples of one update" in capsys.readouterr().out


def test_a_dry_run_refuses_prompts_that_processes_cannot_share(monkeypatch, capsys):
    class Three:
        num_processes = 3

    monkeypatch.setattr("reproduce.dry_run.process_state", Three)
    assert preflight("table1", "quick", table1.TABLE.arms("quick"), Path("elsewhere")) == 2
    assert "the 4 prompts of one update must be a multiple of the 3 processes" in capsys.readouterr().out


def test_speed_of_a_model_with_random_weights_is_measured_anywhere(tmp_path, capsys):
    """What runs on a GPU at FLUX.1-dev's size runs on the embedded sizes here, without their weights."""
    for preset in ("image/quick", "video/quick"):
        assert speed_large.main(["--preset", preset, "--gpu", "none", "--iterations", "1", "--out", str(tmp_path)]) == 0
    for path in tmp_path.iterdir():
        found = json.loads(path.read_text())
        assert 0 < found["seconds"]["sampling"] < found["seconds"]["total"] and found["utilisation"] is None
        assert found["seconds"]["update"] > 0 and found["planned_memory_gib"] > 0
        modality = found["model"].removeprefix("embedded:")
        settings = {"policy.prompt_cache": "x", "rewards": ["reproduce.speed_large:Brightness"]}
        config = presets.train_config(f"{modality}/quick", "otca", find_method("otca").settings | settings, 0)
        planned = plan(config, find_method("otca"))  # without the text encoders, which the measured model lacks
        assert found["planned_memory_gib"] == pytest.approx(max(planned.sampling_peak, planned.update_peak) / 2**30, rel=0.02)
    assert len(list(tmp_path.iterdir())) == 2


def test_utilisation_counts_no_recomputation_and_the_gpu_that_is_here(tmp_path, monkeypatch, capsys):
    """With checkpointing the backward pass computes the forward pass anew, which is no progress."""
    small = {"prompts_per_iteration": 2, "group_size": 4, "micro_batch": 4, "sampler.steps": 3}
    config = presets.train_config("image/quick", "otca", small | {"rewards": ["reproduce.speed_large:Brightness"]}, 0)
    flops = {}
    for again in (False, True):
        changed = dataclasses.replace(config, policy=dataclasses.replace(config.policy, gradient_checkpointing=again))
        flops[again] = speed_large.measure(changed, "h100", 1, tmp_path / str(again))["tflop_an_iteration"]
    assert flops[True] == flops[False] > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, known in (("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("Abacus", "none")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert speed_large._known("auto") == known
    assert speed_large.main(["--gpu", "abacus"]) == 2 and "gpu is 'abacus'" in capsys.readouterr().err
