"""Run folders: a config that cannot change unnoticed, and a manifest that says which code made the run."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest
import yaml

from otca import __version__, runs
from otca.config import TrainConfig
from otca.errors import InputError
from otca.runs import begin_run, code_of


def git(folder, *command):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", "-C", folder, *who, *command], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    """A repository of one commit, with code and something else."""
    for name in ("otca/engine.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    code_of.cache_clear()
    yield tmp_path
    code_of.cache_clear()


@pytest.mark.parametrize("file, changed", [(None, False), ("README.md", False), ("otca/engine.py", True), ("otca/new.py", True)])
def test_commit_and_whether_the_code_was_changed(checkout, file, changed):
    if file:
        (checkout / file).write_text("second\n")
    first = {"version": __version__, "commit": git(checkout, "rev-parse", "HEAD"), "changed": changed}
    assert code_of(checkout) == first
    git(checkout, "commit", "-qm", "second", "--allow-empty")
    assert code_of(checkout) == first  # the first answer holds for the process


def test_a_copy_in_another_project_and_a_machine_without_git_have_no_commit(checkout, monkeypatch):
    assert code_of(checkout / "otca") == {"version": __version__, "commit": None, "changed": False}
    monkeypatch.setenv("PATH", "")
    assert code_of(checkout)["commit"] is None


def test_a_manifest_has_it_and_stays_the_same_run(tmp_path, monkeypatch):
    """The hash, by which tables refer to runs, is that of what ran and of its rows, whichever commit made them."""
    arm = runs.RunSpec("image", "mine", "otca", 0)
    own = runs.finish_run(tmp_path, arm, {}, {}, {})
    assert own["code"] == code_of() and runs.read_manifest(tmp_path) == own
    monkeypatch.setattr(runs, "code_of", lambda: {"version": "9", "commit": "1" * 40, "changed": True})
    other = runs.finish_run(tmp_path, arm, {}, {}, {})
    assert other["code"]["version"] == "9" and other["hash"] == own["hash"] and not runs.integrity_errors(tmp_path)
    assert runs.finish_run(tmp_path, arm, {}, {"reward_calls": 1}, {})["hash"] != own["hash"]


def test_a_run_that_is_older_than_the_setting_goes_on(tmp_path):
    """Its config.yaml lacks the key, which had the default."""
    settings = dataclasses.asdict(TrainConfig())
    del settings["reward_timeout"], settings["credit"]["process_spread"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    begin_run(tmp_path, TrainConfig())
    with pytest.raises(InputError, match=r"another config \(reward_timeout: 600.0 → 60.0\)"):
        begin_run(tmp_path, TrainConfig(reward_timeout=60.0))
    with pytest.raises(InputError, match=r"another config \(credit.process_spread: even → early\)"):
        begin_run(tmp_path, TrainConfig.from_dotted({"credit.process_spread": "early"}))


@pytest.mark.parametrize("settings", [{"policy.tuning": "lora"}, {"policy.lora_rank": 8}])
def test_what_checkpoints_hold_cannot_be_overridden(tmp_path, settings):
    begin_run(tmp_path, TrainConfig())
    before = (tmp_path / runs.CONFIG).read_text()
    with pytest.raises(InputError, match=r"cannot change .* what checkpoints hold \(policy\.\w+: .* → .*\); use another folder"):
        begin_run(tmp_path, TrainConfig.from_dotted(settings), override=True)
    assert (tmp_path / runs.CONFIG).read_text() == before and not (tmp_path / runs.OVERRIDDEN).exists()
