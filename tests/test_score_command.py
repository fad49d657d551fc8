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
from otca.errors import InputError
from otca.tasks import scenes, video_scenes
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
        ("quality,otca.tasks.rewards:Quality", "both fill the column 'quality'"),
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


@pytest.mark.parametrize("modality", ["--images", "--videos"])
def test_a_device_that_is_none_is_refused_first(capsys, tmp_path, modality):
    """Before the folder is looked into, which is not even there."""
    argv = ["score", modality, str(tmp_path / "none"), "--prompts", str(tmp_path / "none.csv"), "--device", "nonsense"]
    said = refused(capsys, *argv)
    assert "device 'nonsense' cannot be used (" in said and said.endswith("; use cpu, cuda or cuda:0")


# -------------------------------------------------------------------------------------------------------------- prompts


def pictures(folder, rows):
    """A white picture a row, and the list of their prompts; how to score them by --rewards."""
    for row in rows:
        Image.new("RGB", (64, 64), "white").save(folder / f"{row['id']}.png")
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["score", "--images", str(folder), "--prompts", str(folder / "prompts.jsonl"), "--rewards"]


def test_prompts_that_a_reward_cannot_judge_are_refused_first(capsys, tmp_path):
    """The first is named and all are counted, before a model is loaded or a file written."""
    texts = {"a": 'a sign, "Go"', "b": "a sign", "c": 'a sign, "No"', "d": "a dog"}
    argv = pictures(tmp_path, [{"id": name, "prompt": text} for name, text in texts.items()])
    said = refused(capsys, *argv, "tests.test_score_command:Untouched,ocr")
    assert "prompt 'b' has no text in quotation marks; ocr needs a text, as in: a sign that says \"STOP\"" in said
    assert said.endswith(f"(the first of 2 such prompts of {tmp_path / 'prompts.jsonl'})")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "c.png", "d.png", "prompts.jsonl"}


def test_a_prompt_of_several_samples_counts_once(capsys, tmp_path):
    argv = pictures(tmp_path, [{"id": "a", "prompt": "a sign"}])
    for i in range(2):
        Image.new("RGB", (64, 64)).save(tmp_path / f"a_{i}.png")
    (tmp_path / "a.png").unlink()
    assert refused(capsys, *argv, "ocr").endswith('as in: a sign that says "STOP"')


@pytest.mark.parametrize("modality", ["--images", "--videos"])
def test_specs_that_the_held_out_judge_cannot_read_are_refused_first(capsys, tmp_path, video, modality):
    """Those of the other modality's grammar; without the judge, a reward that reads no spec scores them."""
    prompt = (video_scenes if modality == "--images" else scenes).prompts("test", 1)[0]
    argv = pictures(tmp_path, [{"id": "a", "prompt": prompt.text, "spec": prompt.spec}])
    argv[1] = modality
    if modality == "--videos":
        write_webp(tmp_path / "a.webp", video)
    argv += ["tests.test_score_command:Untouched"]
    assert "prompt 'a' has the spec" in refused(capsys, *argv)
    with pytest.raises(AssertionError, match="asked"):
        main([*argv, "--held_out", "false"])


class Untouched:
    """Must not be asked."""

    name, range, source, licence, revision = "untouched", (0, 1), "test", "", ""

    def __init__(self):
        raise AssertionError("asked")


# ------------------------------------------------------------------------------------------------- media that are refused


class Choosy:
    """Takes videos of two frames or more, and no prompt about dogs; fails at cats."""

    name, range, source, licence, revision = "choosy", (0, 1), "test", "", ""

    def score(self, media, prompts):
        if media.shape[1] < 2:
            raise InputError("choosy takes videos of at least 2 frames, not 1")
        if any("dog" in prompt.text for prompt in prompts):
            raise InputError("choosy takes no dogs")
        if any("cat" in prompt.text for prompt in prompts):
            raise ValueError("a cat")
        return torch.full((len(prompts),), 0.5)


def clips(folder, video, texts):
    """A video a prompt, of one frame for the id "short"; how to score them."""
    for name in texts:
        write_webp(folder / f"{name}.webp", video[:1] if name == "short" else video)
    (folder / "prompts.csv").write_text("id,prompt\n" + "".join(f"{name},{text}\n" for name, text in texts.items()))
    argv = ["score", "--videos", str(folder), "--prompts", str(folder / "prompts.csv"), "--motion", "false"]
    return [*argv, "--rewards", "tests.test_score_folder:Rate,tests.test_score_command:Choosy"]


@pytest.mark.parametrize("timeout", ["600", "0"])
def test_media_that_a_reward_refuses_lack_its_score_alone(capsys, tmp_path, video, timeout):
    """Each by itself, though they are scored together; all others are scored, and the end says what is not, and why."""
    texts = {"a": "a cup", "b": "a dog", "c": "a cup", "short": "a cup"}
    argv = clips(tmp_path, video, texts)
    assert main([*argv, "--reward_timeout", timeout]) == 0
    out = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "scores.csv").set_index("prompt_id")
    assert rows["rate"].notna().all() and rows["choosy"].notna().to_dict() == {"a": True, "b": False, "c": True, "short": False}
    said = f"not scored: tests.test_score_command.Choosy: video {tmp_path}"
    assert out.count("not scored:") == 2 and f"{said}/b.webp: choosy takes no dogs" in out
    assert f"{said}/short.webp: choosy takes videos of at least 2 frames, not 1" in out
    assert next(line for line in out.splitlines() if "choosy" in line).split()[-2:] == ["2", "2"]


def test_pictures_that_a_reward_refuses_are_called_so(capsys, tmp_path):
    argv = pictures(tmp_path, [{"id": "a", "prompt": "a cup"}])
    assert main([*argv, "tests.test_score_folder:Size,tests.test_score_command:Choosy"]) == 0
    out = capsys.readouterr().out
    assert f"not scored: tests.test_score_command.Choosy: image {tmp_path}/a.png: choosy takes videos of at least 2" in out
    assert pd.read_csv(tmp_path / "scores.csv")["size"].tolist() == [1.0]


def test_a_failing_reward_names_the_media(capsys, tmp_path, video):
    assert main(clips(tmp_path, video, {"a": "a cup", "b": "a cat"})) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]  # after the bars
    assert "reward 'choosy' failed: ValueError('a cat') on 2 prompts" in said
    assert said.endswith(f"; it was scoring {tmp_path / 'a.webp'} and 1 after it")
