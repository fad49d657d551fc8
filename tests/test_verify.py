"""``verify`` finds every change of a published run and of a checkpoint; ``doctor`` says what is wrong and the way out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import otca.commands.doctor as doctor
import otca.files
from otca.__main__ import main

PUBLISHED = Path(__file__).parent.parent / "results/image/quick/otca/seed0"


@pytest.fixture
def run(tmp_path):
    """A copy of a published run without its pictures."""
    return Path(shutil.copytree(PUBLISHED, tmp_path / "runs/otca/seed0", ignore=shutil.ignore_patterns("media")))


def verified(capsys, folder) -> tuple[int, str]:
    code = main(["verify", str(folder)])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_every_published_run_is_whole(capsys):
    results = PUBLISHED.parents[3]
    count = sum(1 for _ in results.rglob("manifest.json"))
    code, said = verified(capsys, results)
    assert code == 0 and count >= 24 and f"looked at {count} runs" in said


@pytest.mark.parametrize("name", ["config.yaml", "train.csv", "scores.csv.gz", "sets.csv"])
def test_a_changed_or_missing_file_is_named(capsys, run, name):
    path = run / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, said = verified(capsys, run.parents[1])
    assert code == 2 and f"{path} was changed: expected SHA-256" in said and "1 damages" in said
    path.unlink()
    assert f"{path} is missing" in verified(capsys, run)[1]


def test_an_edited_manifest_is_found(capsys, run):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"budget": {"network_evaluations": 1, "reward_calls": 1}}))
    assert f"{path} was edited" in verified(capsys, run)[1]
    path.write_text("{")
    assert f"{path} is no manifest of a run" in verified(capsys, run)[1]


def test_checkpoints_are_looked_at(capsys, tmp_path):
    folder = Path(shutil.copytree(otca.files.EMBEDDED / "judge", tmp_path / "judge"))
    assert verified(capsys, tmp_path)[0] == 0
    victim = next(path for path in folder.rglob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    code, said = verified(capsys, tmp_path)
    assert code == 2 and f"checkpoint file {victim} is damaged" in said


def test_nothing_to_verify_is_an_error(capsys, tmp_path):
    assert "holds neither a finished run" in verified(capsys, tmp_path)[1]
    assert "not found" in verified(capsys, tmp_path / "absent")[1]


def test_the_doctor_is_content_here(capsys):
    code = main(["doctor"])
    said = capsys.readouterr().out
    assert code == 0 and "FAIL" not in said
    for expected in ("packages as pinned", "computes on the CPU", "embedded:video_judge is whole", "without: "):
        assert expected in said


@pytest.mark.parametrize(
    "name, value, said, way_out",
    [
        ("version", lambda package: "0.0.1", "torch 0.0.1 (pinned: ", "pip install -r requirements.txt"),
        ("PYTHONS", ((3, 8), (3, 9)), "(supported: 3.8 to 3.9)", "make the environment with Python 3.8 to 3.9"),
        ("FREE_GIGABYTES", 1e9, "GB free in", "make room"),
    ],
)
def test_the_doctor_says_what_is_wrong_and_what_to_do(capsys, monkeypatch, name, value, said, way_out):
    monkeypatch.setattr(doctor, name, value)
    assert main(["doctor"]) == 2
    printed = capsys.readouterr()
    failed = printed.out.split("FAIL", 1)[1]
    assert said in failed and way_out in failed and "1 checks failed" in printed.err
