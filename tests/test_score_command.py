"""`python -m otca score` as a user meets it: short videos, columns that collide, one model at a time, on the device asked for."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from eval import scorers
from eval.metrics.encoders import FrameEncoder
from eval.videos import write_webp
from otca.__main__ import main
from otca.embedded import scenes
from tests.test_cli import refused


def test_short_videos_and_no_motion(capsys, tmp_path, video):
    """Two frames are too few for motion, not for rewards; --motion false leaves the metrics of motion out."""
    write_webp(tmp_path / "a.webp", video)
    write_webp(tmp_path / "b.webp", video[:2])
    (tmp_path / "prompts.csv").write_text("id,prompt\na,a red circle\nb,a red circle\n")
    argv = ["score", "--videos", str(tmp_path), "--prompts", str(tmp_path / "prompts.csv")]
    argv += ["--rewards", "tests.test_score_folder:Size"]
    assert main(argv) == 0
    assert "not scored: motion: video" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert rows["size"].notna().all() and rows["warping_error_dis"].notna().tolist() == [True, False]
    assert main([*argv, "--motion", "false"]) == 0
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert rows["error"].isna().all() and list(rows)[-2:] == ["size", "error"] and not any("_dis" in name for name in rows)
    said = refused(capsys, *argv, "--motion", "false", "--raft", str(tmp_path / "a.webp"))
    assert "--raft is for metrics of motion" in said


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("quality,http://127.0.0.1:9/quality", "quality and http://127.0.0.1:9/quality both fill the column 'quality'"),
        ("quality,quality", "rewards quality and quality both fill the column 'quality'"),
        ("quality,otca.embedded.rewards:Quality", "both fill the column 'quality'"),
        ("clip,otca.rewards.clip:ClipScore", "both fill the column 'clip'"),
    ],
)
def test_two_rewards_of_one_column_are_refused(capsys, tmp_path, rewards, said):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    spec = scenes.prompts("test", 1)[0]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"id": "a", "prompt": spec.text, "spec": spec.spec}))
    argv = ["score", "--images", str(tmp_path), "--prompts", str(tmp_path / "prompts.jsonl"), "--rewards", rewards]
    assert said in refused(capsys, *argv)


def test_models_are_loaded_one_by_one_on_the_device(capsys, tmp_path, video, monkeypatch):
    """What is asked for is made when its turn has come, on the device that is asked for, and gone before the next one."""
    loaded, alive = [], weakref.WeakSet()

    class Model:
        name, vbench, protocol, source, licence, revision, range = "raft", True, {}, "", "", "", (0, 1)

        def __init__(self, what, device):
            assert not alive, f"{what} comes while {list(alive)} are in memory"
            loaded.append((what, str(device)))
            alive.add(self)

        def encode(self, video_FCHW):
            return video_FCHW.flatten(1)

        def padded(self, first, second):
            return np.zeros((64, 64, 2), np.float32)

        def __call__(self, first, second):
            return np.zeros((64, 64, 2), np.float32)

        def score(self, media, prompts=None):
            return torch.zeros(len(media)) if isinstance(prompts, list) else 0.5

    def encoder(what):
        def make(path, device):
            model = Model(what, device)
            return FrameEncoder(what, model.encode, {})

        return make

    def quality(what):
        made = type(what, (Model,), {"column": what, "__init__": lambda self, path, device: Model.__init__(self, what, device)})
        return made

    monkeypatch.setattr(scorers, "load_flow", lambda path, device: Model("raft", device))
    monkeypatch.setattr(scorers, "dino_encoder", encoder("dino"))
    monkeypatch.setattr(scorers, "clip_encoder", encoder("clip_frames"))
    monkeypatch.setattr(scorers, "ViClip", lambda path, device: quality("viclip")(path, device))
    monkeypatch.setattr("eval.metrics.frame_quality.AestheticQuality", quality("aesthetic_quality"))
    monkeypatch.setattr("eval.metrics.frame_quality.ImagingQuality", quality("imaging_quality"))
    monkeypatch.setattr(scorers, "build_reward", lambda name, device, files, timeout: Model(name, device))
    monkeypatch.setattr(scorers, "find_files", lambda card, files: {})
    for name in ("a cup", "a dog"):
        write_webp(tmp_path / f"{name}-0.webp", video)
    listed = [{"prompt_en": "a cup", "dimension": ["temporal_flickering"]}, {"prompt_en": "a dog", "dimension": ["color"]}]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    weights = tmp_path / "weights"
    weights.mkdir()
    argv = [
        "score",
        "--videos",
        str(tmp_path),
        "--prompts",
        str(tmp_path / "list.json"),
        "--rewards",
        "hpsv2",
        "--device",
        "meta",
    ]
    (weights / "weights.pth").write_text("")
    for option in ("raft", "dino", "clip", "aesthetic", "musiq", "viclip"):
        argv += [f"--{option}", str(weights if option in ("clip", "aesthetic") else weights / "weights.pth")]
    assert main([*argv, "--out", str(tmp_path / "scores.csv")]) == 0
    models = ["raft", "dino", "clip_frames", "aesthetic_quality", "imaging_quality", "viclip", "hpsv2", "raft"]
    assert loaded == [(what, "meta") for what in models] and not alive
