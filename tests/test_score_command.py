"""`otca score` as a user meets it: columns that are added or collide, what is refused before scoring, one model at a time."""

from __future__ import annotations

import json

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


def pictures(folder, rows, *options):
    """A white picture a row, and the list of their prompts; how to score them by --rewards."""
    for row in rows:
        Image.new("RGB", (64, 64), "white").save(folder / f"{row['id']}.png")
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["score", "--images", str(folder), "--prompts", str(folder / "prompts.jsonl"), *options, "--rewards"]


def clips(folder, video, texts):
    """A video a prompt, of one frame for the id "short"; how to score them."""
    for name in texts:
        write_webp(folder / f"{name}.webp", video[:1] if name == "short" else video)
    (folder / "prompts.csv").write_text("id,prompt\n" + "".join(f"{name},{text}\n" for name, text in texts.items()))
    return ["score", "--videos", str(folder), "--prompts", str(folder / "prompts.csv"), "--rewards"]


RATE, SIZE, CHOOSY = "tests.test_score_folder:Rate", "tests.test_score_folder:Size", "tests.test_score_command:Choosy"


def test_columns_are_added_where_the_rows_agree_and_else_refused_first(capsys, tmp_path, video):
    """A second call keeps the first's columns and errors, and notes both in the protocol."""
    argv = clips(tmp_path, video, {"a": "a cup", "short": "a cup"})
    assert main([*argv, f"{RATE},{CHOOSY}"]) == 0
    assert main([*argv, SIZE, "--motion", "false"]) == 0
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert list(rows)[-1] == "error" and rows[["rate", "size", "warping_error_dis"]].notna().sum().tolist() == [2, 2, 1]
    assert "motion: video" in rows["error"][1] and "choosy takes videos" in rows["error"][1]
    protocol = json.loads((tmp_path / "scores.json").read_text())
    assert protocol["orientation"] == "upright" and len(protocol["scorers"]) == 5
    before = (tmp_path / "scores.csv").read_bytes()
    assert "made with another orientation" in refused(capsys, *argv, SIZE, "--orientation", "stored")
    write_webp(tmp_path / "a.webp", video.flip(0))
    assert "made with another content of files" in refused(capsys, *argv, SIZE)
    (tmp_path / "a.webp").unlink()
    assert "rows of other files or prompts (short.webp where it has a.webp)" in refused(capsys, *argv, SIZE)
    assert (tmp_path / "scores.csv").read_bytes() == before


def test_where_rows_go_and_what_is_not_read(capsys, tmp_path):
    argv = pictures(tmp_path, [{"id": "a", "prompt": "a cup"}])
    (tmp_path / "b.heic").write_bytes(b"")
    (tmp_path / "out").mkdir()
    assert main([*argv, SIZE, "--out", str(tmp_path / "out")]) == 0 and (tmp_path / "out/scores.csv").is_file()
    assert "not read, so not scored: b.heic" in capsys.readouterr().out
    assert "1 not read, b.heic" in refused(capsys, *argv, SIZE, "--strict", "true")
    argv[2] = str(tmp_path / "a.png")
    assert main([*argv, SIZE]) == 0 and len(pd.read_csv(tmp_path / "scores.csv")) == 1


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ("quality,http://127.0.0.1:9/quality", "quality and http://127.0.0.1:9/quality both fill the column 'quality'"),
        ("quality,otca.tasks.rewards:Quality", "both fill the column 'quality'"),
        ("clip,otca.rewards.clip:ClipScore", "both fill the column 'clip'"),
    ],
)
def test_two_rewards_of_one_column_are_refused(capsys, tmp_path, rewards, said):
    spec = scenes.prompts("test", 1)[0]
    argv = pictures(tmp_path, [{"id": "a", "prompt": spec.text, "spec": spec.spec}])
    assert said in refused(capsys, *argv, rewards)


def test_models_are_loaded_one_by_one_on_the_device(tmp_path, video, monkeypatch):
    """What is asked for is made when its turn has come, on the device that is asked for."""
    loaded = []

    class Model:
        name, vbench, protocol, range = "raft", True, {}, (0, 1)

        def __init__(self, what, device):
            self.column = what
            loaded.append((what, str(device)))

        def padded(self, first, second):
            return np.zeros((64, 64, 2), np.float32)

        __call__ = padded

        def score(self, media, prompts=None):
            return torch.zeros(len(media)) if isinstance(prompts, list) else 0.5

    def encoder(what):
        return lambda path, device: FrameEncoder(Model(what, device).column, lambda video: video.flatten(1), {})

    monkeypatch.setattr(scorers, "load_flow", lambda path, device: Model("raft", device))
    monkeypatch.setattr(scorers, "dino_encoder", encoder("dino"))
    monkeypatch.setattr(scorers, "clip_encoder", encoder("clip_frames"))
    for name in ("ViClip", "AestheticQuality", "ImagingQuality"):
        monkeypatch.setattr(scorers, name, lambda path, device, name=name: Model(name, device))
    monkeypatch.setattr(scorers, "build_reward", lambda name, device, files, timeout: Model(name, device))
    monkeypatch.setattr(scorers, "find_files", lambda card, files: {})
    for name in ("a cup", "a dog"):
        write_webp(tmp_path / f"{name}-0.webp", video)
    listed = [{"prompt_en": "a cup", "dimension": ["temporal_flickering"]}, {"prompt_en": "a dog", "dimension": ["color"]}]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/weights.pth").write_text("")
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
    for option in ("raft", "dino", "clip", "aesthetic", "musiq", "viclip"):
        argv += [f"--{option}", str(tmp_path / "weights/weights.pth")]
    assert main([*argv, "--out", str(tmp_path / "scores.csv")]) == 0
    models = ["raft", "dino", "clip_frames", "AestheticQuality", "ImagingQuality", "ViClip", "raft", "hpsv2"]
    assert loaded == [(what, "meta") for what in models]


def test_options_that_do_not_go_together_are_refused_first(capsys, tmp_path):
    """Before the folder is looked into, which is not even there."""
    for kind in ("--images", "--videos"):
        argv = ["score", kind, str(tmp_path / "none"), "--prompts", str(tmp_path / "none.csv")]
        said = refused(capsys, *argv, "--device", "nonsense")
        assert "device 'nonsense' cannot be used (" in said and said.endswith("; use cpu, cuda or cuda:0")
    assert "give either --images" in refused(capsys, *argv, "--images", "x")
    argv[1] = "--images"
    assert "--raft is for videos" in refused(capsys, *argv, "--raft", "x")


# -------------------------------------------------------------------------------------------------------------- prompts


def test_prompts_that_a_reward_cannot_judge_are_refused_first(capsys, tmp_path):
    """The first is named and all are counted, once a prompt, before a model is loaded or a file written."""
    texts = {"a": 'a sign, "Go"', "b": "a sign", "c": 'a sign, "No"', "d": "a dog"}
    argv = pictures(tmp_path, [{"id": name, "prompt": text} for name, text in texts.items()])
    Image.new("RGB", (64, 64)).save(tmp_path / "b_1.png")
    said = refused(capsys, *argv, "tests.test_score_command:Untouched,ocr")
    assert "prompt 'b' has no text in quotation marks; ocr needs a text, as in: a sign that says \"STOP\"" in said
    assert said.endswith(f"(the first of 2 such prompts of {tmp_path / 'prompts.jsonl'})")
    assert not (tmp_path / "scores.csv").exists()
    assert "(do you mean aesthetic_v2?)" in refused(capsys, *argv, "clip,aesthetic")


@pytest.mark.parametrize("kind", ["--images", "--videos"])
def test_specs_that_the_held_out_judge_cannot_read_are_refused_first(capsys, tmp_path, video, kind):
    """Those of the other modality's grammar; without the judge, a reward that reads no spec scores them."""
    prompt = (video_scenes if kind == "--images" else scenes).prompts("test", 1)[0]
    argv = pictures(tmp_path, [{"id": "a", "prompt": prompt.text, "spec": prompt.spec}])
    argv[1] = kind
    if kind == "--videos":
        write_webp(tmp_path / "a.webp", video)
    argv += ["tests.test_score_command:Untouched"]
    assert "prompt 'a' has the spec" in refused(capsys, *argv)
    with pytest.raises(AssertionError, match="asked"):
        main([*argv, "--held_out", "false"])


def test_the_held_out_judges_score_where_prompts_have_specs(tmp_path):
    prompt = scenes.prompts("test", 1)[0]
    argv = pictures(tmp_path, [{"id": "a", "prompt": prompt.text, "spec": prompt.spec}])
    assert main([*argv, SIZE]) == 0
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert rows["judge_correct"].tolist() == [0.0] and rows["clip_score"].notna().all()


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


@pytest.mark.parametrize("timeout", ["600", "0"])
def test_media_that_a_reward_refuses_lack_its_score_alone(capsys, tmp_path, video, timeout):
    """Each by itself, though they are scored together; all others are scored, and the end says what is not, and why."""
    argv = clips(tmp_path, video, {"a": "a cup", "b": "a dog", "c": "a cup", "short": "a cup"})
    assert main([*argv, f"{RATE},{CHOOSY}", "--motion", "false", "--reward_timeout", timeout]) == 0
    out = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "scores.csv").set_index("prompt_id")
    assert rows["rate"].notna().all() and rows["choosy"].notna().to_dict() == {"a": True, "b": False, "c": True, "short": False}
    said = f"not scored: tests.test_score_command.Choosy: video {tmp_path}"
    assert out.count("not scored:") == 2 and f"{said}/b.webp: choosy takes no dogs" in out
    assert f"{said}/short.webp: choosy takes videos of at least 2 frames, not 1" in out


def test_a_failing_reward_names_the_media(capsys, tmp_path, video):
    assert main([*clips(tmp_path, video, {"a": "a cup", "b": "a cat"}), CHOOSY, "--motion", "false"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]  # after the bars
    assert "reward 'choosy' failed: ValueError('a cat') on 2 prompts" in said
    assert said.endswith(f"; it was scoring {tmp_path / 'a.webp'} and 1 after it")
