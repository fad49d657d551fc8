"""What a user reads before launching at scale: presets, recipes, launchers' configs, dry runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from baselines import find_method
from otca import presets
from otca.architectures import PUBLISHED
from otca.published_prompts import LISTS
from reproduce import recipes, speed_large, table1
from reproduce.dry_run import look_over
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
    assert "in the way: disk: " in out and "0.0 GiB free; make room" in out


def test_a_dry_run_refuses_prompts_that_processes_cannot_share(monkeypatch, capsys):
    class Three:
        num_processes = 3

    monkeypatch.setattr("reproduce.dry_run.process_state", Three)
    assert look_over("table1", "quick", table1.TABLE.arms("quick"), Path("elsewhere")) == 2
    assert "the 4 prompts of one update must be a multiple of the 3 processes" in capsys.readouterr().out


def test_speed_of_a_model_with_random_weights_is_measured_anywhere(tmp_path, capsys):
    """What runs on a GPU at FLUX.1-dev's size runs on the embedded sizes here, without their weights."""
    for preset in ("image/quick", "video/quick"):
        assert speed_large.main(["--preset", preset, "--gpu", "none", "--iterations", "1", "--out", str(tmp_path)]) == 0
    for path in tmp_path.iterdir():
        found = json.loads(path.read_text())
        assert 0 < found["seconds"]["sampling"] < found["seconds"]["total"] and found["utilisation"] is None
        assert found["seconds"]["update"] > 0 and found["planned_memory_gib"] > 0
    assert len(list(tmp_path.iterdir())) == 2
    assert speed_large.main(["--gpu", "abacus"]) == 2 and "gpu is 'abacus'" in capsys.readouterr().err
