"""The command line as a user meets it: one clear line and exit code 2 for bad input, and the three commands for real."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest

import otca.files
from otca.__main__ import main
from otca.config import TrainConfig
from otca.runs import begin_run


def refused(capsys, *argv) -> str:
    """The one line that the command ends with."""
    capsys.readouterr()
    assert main(list(argv)) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    "argv, said",
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--method", "otca_tdc"], "unknown method 'otca_tdc'; did you mean 'otca_tcd'"),
        (["train", "--sampler.stepz", "3"], "did you mean 'sampler.steps'"),
        (["train", "--sampler.kind", "flow_sd"], "did you mean 'flow_sde'"),
        (["train", "--sampler.steps", "1"], "sampler.steps is 1; it must be at least 2"),
        (["train", "--preset", "image/quik"], "did you mean 'image/quick'"),
        (["train", "--policy.height", "60"], "policy.height is 60"),
        (["train", "--reward_weights", "[1,2]"], "2 entries for 3 rewards"),
        (["sample"], "out"),
        (["score", "--images", "nowhere", "--prompts", "nowhere.jsonl"], "nowhere"),
    ],
)
def test_bad_arguments(capsys, tmp_path, monkeypatch, argv, said):
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, *argv)
    assert not list(tmp_path.rglob("*.csv"))


def test_bad_values_found_while_loading(capsys, tmp_path, untrained_pipeline):
    out = ["--out", str(tmp_path / "run"), "--policy.path", untrained_pipeline]
    assert "unknown reward 'qualty'; did you mean 'quality'" in refused(capsys, "train", "--rewards", "[qualty]", *out)
    assert "two of them are called 'quality'" in refused(capsys, "train", "--rewards", "[quality,quality]", *out)
    (tmp_path / "bare.txt").write_text("a red circle\n")
    bare = ["--prompts", str(tmp_path / "bare.txt"), *out]
    assert "need the spec of each prompt, and " in refused(capsys, "train", *bare)
    assert "no model_index.json" in refused(capsys, "train", "--policy.path", "./nothing", "--out", str(tmp_path / "run"))
    assert "no shipped checkpoint" in refused(capsys, "train", "--policy.path", "embedded:audio", "--out", str(tmp_path / "r"))
    file = tmp_path / "file"
    file.write_text("")
    assert "cannot be written to" in refused(capsys, "train", "--out", str(file / "run"), "--policy.path", untrained_pipeline)
    assert "nothing.txt not found" in refused(capsys, "train", "--prompts", str(tmp_path / "nothing.txt"), *out)
    assert not (tmp_path / "run").exists()


def test_truncated_embedded_checkpoint_names_file_and_hashes(capsys, tmp_path, monkeypatch):
    shutil.copytree(otca.files.EMBEDDED / "image", tmp_path / "image")
    victim = tmp_path / "image" / "transformer" / "diffusion_pytorch_model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-100])
    monkeypatch.setattr(otca.files, "EMBEDDED", tmp_path)
    error = refused(capsys, "train", "--out", str(tmp_path / "run"))
    assert str(victim) in error and "expected SHA-256" in error and "found" in error
    victim.unlink()
    assert "is missing (expected SHA-256" in refused(capsys, "train", "--out", str(tmp_path / "run"))


def test_dry_run_yaml_round_trips(capsys, tmp_path):
    """What --dry_run prints is a YAML file that --config takes, and that resolves to the same settings."""
    assert main(["train", "--dry_run", "true", "--method", "otca_tcd", "--credit.rho", "0.25", "--seed", "7"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(first)
    assert main(["train", "--dry_run", "true", "--method", "otca_tcd", "--config", str(tmp_path / "c.yaml")]) == 0
    assert capsys.readouterr().out == first
    (tmp_path / "c.yaml").write_text(first + "sedd: 1\n")
    assert "did you mean 'seed'" in refused(capsys, "train", "--method", "otca_tcd", "--config", str(tmp_path / "c.yaml"))


def test_train_sample_score(capsys, tmp_path, untrained_pipeline):
    """A tiny run, samples from it, and their scores; a second config in the same folder is refused."""
    run, media = tmp_path / "run", tmp_path / "media"
    tiny = [f"--policy.path={untrained_pipeline}", "--iterations=1", "--sampler.steps=2", "--group_size=2", f"--out={run}"]
    assert main(["train", *tiny]) == 0
    assert "another config (seed: 0 → 1)" in refused(capsys, "train", *tiny, "--seed", "1")
    assert main(["sample", "--run", str(run), "--out", str(media), "--eval.prompts", "6", "--eval.steps", "2"]) == 0
    assert len(list(media.glob("*.png"))) == 12
    scored = ["score", "--images", str(media), "--prompts", str(media / "prompts.jsonl"), "--held_out", "false"]
    assert main(scored) == 0
    rows = pd.read_csv(media / "scores.csv")
    assert len(rows) == 12 and {"file", "alignment", "quality", "aesthetic"} <= set(rows)


def test_arguments_that_are_missing_are_called_as_in_the_help(capsys):
    for argv, said in ((["export"], "RUN, DIR"), (["export", "run"], "DIR"), (["score"], "--prompts"), (["verify"], "folder")):
        expected = f"the following arguments are required: {said} (see python -m otca {argv[0]} --help)"
        assert refused(capsys, *argv).endswith(expected)


def test_exports_into_the_run_or_beside_no_tables_are_refused(capsys, tmp_path):
    """By whatever path the run is reached; a run's own folder is not empty anyhow."""
    run, link = tmp_path / "run", tmp_path / "link"
    run.mkdir()
    (run / "config.yaml").write_text("")
    link.symlink_to(run)
    for inside in (run / "export", run / "a" / "b", link / "export", run / ".." / "run" / "export"):
        assert f"{inside} lies in the run {run}; name a folder outside of it" in refused(capsys, "export", str(run), str(inside))
        assert list(run.iterdir()) == [run / "config.yaml"]
    assert "is there already" in refused(capsys, "export", str(run), str(run))
    said = f"--results {tmp_path / 'nowhere'} is no folder; give one of published tables, or leave it out"
    argv = [str(run), str(tmp_path / "run-export"), "--results"]
    assert said in refused(capsys, "export", *argv, str(tmp_path / "nowhere"))
    assert "has no checkpoint" in refused(capsys, "export", *argv, str(tmp_path))


def test_the_home_folder_is_meant_by_a_tilde_in_every_path(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.yaml").write_text("policy.prompt_cache: ~/cache\n")
    assert main(["train", "--config", "~/own.yaml", "--prompts=~/list.txt", "--dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert f"prompt_cache: {tmp_path}/cache" in out and f"prompts: {tmp_path}/list.txt" in out
    assert f"folder {tmp_path}/none not found" in refused(capsys, "verify", "~/none")


def test_an_unquoted_no_of_yaml_is_explained(capsys, tmp_path):
    (tmp_path / "own.yaml").write_text("policy:\n  precision: no\n")
    assert "write 'no', in quotes" in refused(capsys, "train", "--config", str(tmp_path / "own.yaml"))


def test_columns_of_a_run_are_kept_before_anything_is_loaded(capsys, tmp_path):
    """Another reward, method or number of steps would change train.csv; other settings may be overridden."""
    begin_run(tmp_path, TrainConfig())
    before = (tmp_path / "config.yaml").read_bytes()
    argv = ["train", "--out", str(tmp_path), "--policy.path=nowhere", "--override-config"]
    assert "what checkpoints hold (rewards: " in refused(capsys, *argv, "--rewards=[alignment]")
    assert (tmp_path / "config.yaml").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
