"""`otca score`: rows of what can be read and scored, a kill costs one chunk, columns added or refused, one model at a time."""

from __future__ import annotations

import json
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from eval import scorers
from eval.items import find_items
from eval.metrics.encoders import embedded_encoder
from eval.metrics.flow import DisFlow
from eval.score import ScoreConfig, _joined, score_folder, summary
from eval.scorers import Scorer, metric_scorer, motion, one_column, reward_scorer, video_scorers
from eval.video_writers import write_mp4, write_webp
from otca.__main__ import main
from otca.errors import InputError, RewardError
from otca.serving import make_app
from otca.tasks import scenes, video_scenes
from otca.types import Prompt
from tests.servers import Told, running
from tests.test_cli import refused
from tests.test_media import make_bad, save_frames

pytestmark = pytest.mark.usefixtures("short_collections")
MOTION = metric_scorer("motion", lambda: motion(None, "cpu"))
FRAMES = metric_scorer("embedded_frames", lambda: one_column(embedded_encoder))
RATE, SIZE, CHOOSY = (f"{__name__}:{name}" for name in ("Rate", "Size", "Choosy"))


def found_in(folder, names, still=False):
    """Items of these names, each with its name as the prompt."""
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"file": name, "prompt": f"of {name}"}) for name in names))
    return find_items(folder, still, prompts).items


def scored(folder, scorers=(MOTION,), still=False, partial="partial"):
    """Rows of all media of a folder."""
    items = found_in(folder, [path.name for path in sorted(folder.glob("*"))], still)
    return score_folder(items, scorers, folder.parent / partial, progress=False)


@pytest.fixture
def squares(tmp_path):
    """Six pictures, each of another grey."""
    folder = tmp_path / "squares"
    folder.mkdir()
    for level in range(6):
        Image.new("RGB", (64, 64), (40 * level,) * 3).save(folder / f"{level}.png")
    return folder


@pytest.fixture
def clips(tmp_path):
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


def counting(calls, name="count", batch=2, fails_at=None, identity=""):
    """A scorer that notes every item it is asked about, and may fail at one."""

    def load():
        calls.append("load")

        def score(media, prompts):
            if fails_at is not None and sum(isinstance(c, int) for c in calls) >= fails_at:
                raise RewardError("reward 'count' failed")
            calls.extend(range(len(media)))
            return {"count": [float(v.frames_FCHW.mean()) for v in media]}

        return score

    return Scorer(name, load, batch, identity)


class Rate:
    """The rate that it was told."""

    name, range, source, licence, revision, fps = "rate", (0.0, 100.0), "test", "", "", 3.0

    def score(self, media_BFCHW, prompts):
        return torch.full((len(prompts),), self.fps)


class Size:
    """How many it is asked about at once."""

    name, range, source, licence, revision = "size", (0.0, 100.0), "test", "", ""

    def score(self, media_BFCHW, prompts):
        assert not hasattr(self, "fps")
        return torch.full((len(prompts),), float(len(prompts)))


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


class Untouched:
    """Must not be asked."""

    name, range, source, licence, revision = "untouched", (0, 1), "test", "", ""

    def __init__(self):
        raise AssertionError("asked")


def test_scoring_a_folder_reports_what_it_cannot_read(clips, video):
    """Items come in natural order, folders of frames among them; what no file can be read of is an error."""
    with pytest.raises(InputError, match="holds none that is read"):
        scored(clips)
    (clips / "text.mp4").write_text("text")
    with pytest.raises(InputError, match=r"none of 1 files can be scored; the first: .*text\.mp4"):
        scored(clips)
    bad = make_bad(clips, video)
    write_webp(clips / "clip10.webp", video[:1].repeat(9, 1, 1, 1))
    write_mp4(clips / "clip2.mp4", video, 24)
    save_frames(clips / "clip1", video)
    rows = scored(clips, [counting([])]).set_index("file")
    assert set(rows.index) == {*bad, "clip1", "clip2.mp4", "clip10.webp"}
    assert [name for name in rows.index if name.startswith("clip")] == ["clip1", "clip2.mp4", "clip10.webp"]
    unread = {name: word for name, word in bad.items() if name != "still.webp"}
    for name, word in unread.items():
        assert word in rows.error[name] and name in rows.error[name] and np.isnan(rows["count"][name])
    assert (rows.error != "").sum() == len(unread)
    assert rows.loc["clip2.mp4", ["frames", "fps", "height", "width"]].tolist() == [9, 24, 64, 64]


def test_what_is_too_short_for_motion_lacks_that_alone(clips, video):
    """Its other scores stay, and its row says what is missing."""
    for name, frames in (("one", 1), ("two", 2), ("whole", 9)):
        save_frames(clips / name, video[:frames])
    with pytest.raises(InputError, match="none of 1 files can be scored; the first: motion: video .*one: has 1 frame"):
        score_folder(found_in(clips, ["one"]), [MOTION], clips.parent / "alone", progress=False)
    rows = scored(clips, [MOTION, FRAMES, counting([])]).set_index("file")
    assert rows.dynamic_degree_dis["whole"] == 1 and rows.temporal_flickering["whole"] < 1
    assert rows.error["two"] == f"motion: video {clips / 'two'}: has 2 frame(s), at least 3 are needed"
    assert "; embedded_frames: video" in rows.error["one"] and rows.error["whole"] == ""
    assert rows["count"].notna().all() and rows["frames"].tolist() == [1, 2, 9]
    assert rows.frame_consistency_embedded.notna().tolist() == [False, True, True]
    assert rows.warping_error_dis.notna().tolist() == [False, False, True]


def test_a_killed_scoring_goes_on_where_it_was_and_scores_only_what_changed(squares):
    Image.new("RGB", (40, 24), "white").save(squares / "9.png")  # of another size, so in a chunk of its own
    with pytest.raises(RewardError):
        scored(squares, [counting([], fails_at=4)], True)
    path = squares.parent / "partial" / "count.jsonl"
    rubbish = [b"", b"null", b"[1]", b'{"a": 1, "b": 2}', b"\xff", b'["a", 3]', b'["a", {"count": "x"}]', b"[{}, {}]"]
    path.write_bytes(path.read_bytes()[:-3] + b"\n".join(rubbish))  # a kill in the middle of a line, and what no kill leaves
    calls = []
    rows = scored(squares, [counting(calls)], True)
    assert len(calls) == 1 + 4
    pd.testing.assert_frame_equal(rows, scored(squares, [counting([])], True, "other"))
    Image.new("RGB", (64, 64), "red").save(squares / "3.png")
    rows = scored(squares, [counting(calls)], True)
    assert len(calls) == 2 + 5 and rows.set_index("file")["count"]["3.png"] == pytest.approx(1 / 3)
    scored(squares, [counting(calls, identity="other weights")], True)
    assert len(calls) == 3 + 12


def test_one_model_is_in_memory_at_a_time_and_fills_its_own_columns(squares):
    """Also of models that refer to themselves, which only a collection of garbage frees."""
    alive, most = weakref.WeakSet(), []

    class Model:
        def __init__(self):
            self.itself = self
            alive.add(self)

    def scorer(name):
        def load():
            model = Model()

            def score(media, prompts):
                most.append(len(alive))
                return {name: [float(model.itself is model)] * len(media)}

            return score

        return Scorer(name, load, batch=2)

    rows = scored(squares, [scorer("a"), scorer("b")], True)
    assert most == [1] * 6 and (rows[["a", "b"]] == 1).all(axis=None) and not alive
    with pytest.raises(InputError, match=r"^column 'count' is filled twice, again by again; leave one of the two out$"):
        scored(squares, [counting([]), counting([], "again")], True)


def test_the_summary_resamples_prompts():
    rows = pd.DataFrame({"file": list("abcd"), "prompt_id": list("xxyy"), "width": 64, "r": [0.0, 0.0, 1.0, 1.0], "error": ""})
    line = summary(rows).iloc[0]
    assert (line["mean"], line["low"], line["high"], line["items"], line["prompts"]) == (0.5, 0.0, 1.0, 4, 2)
    assert np.isnan(summary(rows[:2]).iloc[0]["low"])


def test_media_of_one_rate_are_scored_together(clips, video, squares):
    """A reward that depends on the rate is told each video's own; one that does not is left alone; pictures have none."""
    for name, fps in (("a", 8), ("b", 8), ("c", 24), ("d", 12.5)):
        write_mp4(clips / f"{name}.mp4", video, fps)
    save_frames(clips / "e", video)  # states no rate
    rows = scored(clips, [reward_scorer(RATE, 8), reward_scorer(SIZE, 8)])
    assert rows["rate"].tolist() == [8, 8, 24, 12.5, 8] == rows["fps"].tolist() and rows["size"].tolist() == [2, 2, 1, 1, 1]
    assert (scored(squares, [reward_scorer(RATE, 8)], True, "pictures")["rate"] == Rate.fps).all()


def test_scores_are_of_the_weights_that_were_there(tmp_path, monkeypatch):
    """A file of weights that is replaced makes another scorer, and so does the changed source of a reward of one's own."""
    monkeypatch.syspath_prepend(tmp_path)
    path, own = tmp_path / "weights.pth", tmp_path / "own_reward.py"

    def identities(content):
        path.write_text(content)
        own.write_text(f"# {content}\nclass Own:\n    name = 'own'\n")
        return metric_scorer("raft", lambda: None, path).identity, reward_scorer("own_reward:Own", 4).identity

    first = identities("one")
    assert all(a != b for a, b in zip(first, identities("another")))
    path.unlink()
    with pytest.raises(InputError, match=r"metric 'raft': .*weights\.pth not found"):
        metric_scorer("raft", lambda: None, path)
    path.mkdir()
    with pytest.raises(InputError, match=r"weights\.pth is no file; give raft-things\.pth itself"):
        metric_scorer("raft", lambda: None, path, "raft-things.pth")


def test_a_servers_scores_and_its_revision(squares):
    """Asked for before anything is scored; the scores are those of this process."""
    reward = Told(torch.zeros(5))
    reward.revision = "one"
    with running(make_app(reward)) as url:
        scorer = reward_scorer(f"{url}/told?in_flight=2", 4)
        assert f"one at {url}/told" in scorer.identity and (scored(squares, [scorer], True)["told"] == 0).all()
    with pytest.raises(InputError, match=f"reward {url}/told: no answer"):
        reward_scorer(f"{url}/told?retries=0", 4)


def stills(folder, rows, *options):
    """A white picture a row, and the list of their prompts; how to score them by --rewards."""
    for row in rows:
        Image.new("RGB", (64, 64), "white").save(folder / f"{row['id']}.png")
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["score", "--images", str(folder), "--prompts", str(folder / "prompts.jsonl"), *options, "--rewards"]


def films(folder, video, texts):
    """A video a prompt, of one frame for the id "short"; how to score them."""
    for name in texts:
        write_webp(folder / f"{name}.webp", video[:1] if name == "short" else video)
    (folder / "prompts.csv").write_text("id,prompt\n" + "".join(f"{name},{text}\n" for name, text in texts.items()))
    return ["score", "--videos", str(folder), "--prompts", str(folder / "prompts.csv"), "--rewards"]


def test_columns_are_added_where_the_rows_agree_and_else_refused_first(capsys, tmp_path, video):
    """A second call keeps the first's columns and errors, and notes both in the protocol."""
    argv = films(tmp_path, video, {"a": "a cup", "short": "a cup"})
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
    argv = stills(tmp_path, [{"id": "a", "prompt": "a cup"}])
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
    argv = stills(tmp_path, [{"id": "a", "prompt": spec.text, "spec": spec.spec}])
    assert said in refused(capsys, *argv, rewards)


def test_a_scorer_is_made_for_every_file_of_weights_and_loads_on_the_device(tmp_path, monkeypatch):
    """Of VBench's order; nothing is made before its turn has come."""
    loaded = []
    makers = {"dino_encoder": "d", "clip_encoder": "c", "AestheticQuality": "a", "ImagingQuality": "i", "ViClip": "v"}
    for name, letter in makers.items():
        monkeypatch.setattr(scorers, name, lambda path, device, letter=letter: loaded.append((letter, device)))
    monkeypatch.setattr(scorers, "RaftFlow", lambda path, device: loaded.append(("f", device)) or DisFlow())
    (tmp_path / "weights.pth").write_text("")
    given = ScoreConfig(tmp_path, videos=tmp_path, device="meta")
    for option in ("raft", "dino", "clip", "aesthetic", "musiq", "viclip"):
        setattr(given, option, tmp_path / "weights.pth")
    found = video_scorers(given, [(Prompt("a", "a cup"), ("temporal_flickering",))])
    assert not loaded and len({scorer.identity for scorer in found}) == 1
    for scorer in found:
        scorer.load()
    assert loaded == [(letter, "meta") for letter in "fdcaivf"]


def test_options_that_do_not_go_together_are_refused_first(capsys, tmp_path):
    """Before the folder is looked into, which is not even there."""
    argv = ["score", "--images", str(tmp_path / "none"), "--prompts", str(tmp_path / "none.csv")]
    said = refused(capsys, *argv, "--device", "nonsense")
    assert "device 'nonsense' cannot be used (" in said and said.endswith("; use cpu, cuda or cuda:0")
    assert "give either --images" in refused(capsys, *argv, "--videos", "x")
    assert "--raft is for videos" in refused(capsys, *argv, "--raft", "x")


def test_prompts_that_a_reward_cannot_judge_are_refused_first(capsys, tmp_path):
    """The first is named and all are counted, once a prompt, before a model is loaded or a file written."""
    texts = {"a": 'a sign, "Go"', "b": "a sign", "c": 'a sign, "No"', "d": "a dog"}
    argv = stills(tmp_path, [{"id": name, "prompt": text} for name, text in texts.items()])
    Image.new("RGB", (64, 64)).save(tmp_path / "b_1.png")
    said = refused(capsys, *argv, f"{__name__}:Untouched,ocr")
    assert "prompt 'b' has no text in quotation marks; ocr needs a text, as in: a sign that says \"STOP\"" in said
    assert said.endswith(f"(the first of 2 such prompts of {tmp_path / 'prompts.jsonl'})")
    assert not (tmp_path / "scores.csv").exists()
    assert "(do you mean aesthetic_v2?)" in refused(capsys, *argv, "clip,aesthetic")


@pytest.mark.parametrize("kind", ["--images", "--videos"])
def test_specs_that_the_held_out_judge_cannot_read_are_refused_first(capsys, tmp_path, video, kind):
    """Those of the other modality's grammar; without the judge, a reward that reads no spec scores them."""
    prompt = (video_scenes if kind == "--images" else scenes).prompts("test", 1)[0]
    argv = stills(tmp_path, [{"id": "a", "prompt": prompt.text, "spec": prompt.spec}])
    argv[1] = kind
    if kind == "--videos":
        write_webp(tmp_path / "a.webp", video)
    argv += [f"{__name__}:Untouched"]
    assert "prompt 'a' has the spec" in refused(capsys, *argv)
    assert main([*argv, "--held_out", "false"]) == 2 and "asked" in capsys.readouterr().err


def test_the_held_out_judges_score_where_prompts_have_specs(tmp_path):
    prompt = scenes.prompts("test", 1)[0]
    argv = stills(tmp_path, [{"id": "a", "prompt": prompt.text, "spec": prompt.spec}])
    assert main([*argv, SIZE]) == 0
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert rows["judge_correct"].tolist() == [0.0] and rows["clip_score"].notna().all()


def test_media_that_a_reward_refuses_lack_its_score_alone(capsys, tmp_path, video):
    """Each by itself, though they are scored together; all others are scored, and the end says what is not, and why."""
    argv = films(tmp_path, video, {"a": "a cup", "b": "a dog", "c": "a cup", "short": "a cup"})
    assert main([*argv, f"{RATE},{CHOOSY}", "--motion", "false"]) == 0
    out = capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "scores.csv").set_index("prompt_id")
    assert rows["rate"].notna().all() and rows["choosy"].notna().to_dict() == {"a": True, "b": False, "c": True, "short": False}
    said = f"not scored: {__name__}.Choosy: video {tmp_path}"
    assert out.count("not scored:") == 2 and f"{said}/b.webp: choosy takes no dogs" in out
    assert f"{said}/short.webp: choosy takes videos of at least 2 frames, not 1" in out


def test_a_failing_reward_names_the_media(capsys, tmp_path, video):
    assert main([*films(tmp_path, video, {"a": "a cup", "b": "a cat"}), CHOOSY, "--motion", "false"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]  # after the bars
    assert "reward 'choosy' failed: ValueError('a cat') on 2 prompts" in said
    assert said.endswith(f"; it was scoring {tmp_path / 'a.webp'} and 1 after it")


def test_the_protocol_takes_the_place_of_no_other_file(capsys, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"a.png": "a cat"}')
    given = ["score", "--images", str(tmp_path), "--prompts", str(prompts), "--rewards", RATE, "--out"]
    assert "let it end in .csv" in refused(capsys, *given, str(tmp_path / "rows.json"))
    assert "prompts.json is no protocol of a scoring" in refused(capsys, *given, str(tmp_path / "prompts.csv"))
    assert json.loads(prompts.read_text()) == {"a.png": "a cat"} and not (tmp_path / "rows.json").exists()


def test_an_interrupted_sample_leaves_no_earlier_index(capsys, tmp_path, monkeypatch):
    """Its new media would be scored against the earlier call's prompts."""
    (tmp_path / "prompts.jsonl").write_text('{"file": "000001_0.png", "prompt": "of before"}')

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("eval.generate.write_media", stopped)
    assert main(["sample", "--out", str(tmp_path), "--eval.prompts", "1", "--eval.steps", "2"]) == 130
    assert not (tmp_path / "prompts.jsonl").exists()


def test_a_video_too_thin_for_motion_lacks_that_alone(clips, video):
    write_webp(clips / "a.webp", torch.rand(4, 3, 2, 600))
    write_webp(clips / "b.webp", video)
    rows = scored(clips)
    assert "a picture of 600×2 is too thin" in rows["error"][0] and rows["error"][1] == ""
    assert np.isnan(rows["warping_error_dis"][0]) and rows["warping_error_dis"][1] >= 0


def test_a_full_disk_is_told_by_file(capsys, tmp_path):
    argv = stills(tmp_path, [{"id": "a", "prompt": "a cup"}])
    (tmp_path / ".scores.csv.partial").mkdir()
    (tmp_path / ".scores.csv.partial/facts.jsonl").symlink_to("/dev/full")
    assert main([*argv, SIZE]) == 2 and "facts.jsonl: No space left on device" in capsys.readouterr().err


def test_a_column_of_ones_own_stays_as_it_is():
    old = pd.DataFrame({"file": ["a", "b"], "note": ["good", ""], "other": ["0.5", ""], "error": ["", ""]})
    new = pd.DataFrame({"file": ["a", "b"], "mean": [0.1, 0.2], "error": ["", ""]})
    rows = _joined(old, new, {"mean"})
    assert rows["note"].tolist() == ["good", ""] and rows["other"][0] == 0.5 and np.isnan(rows["other"][1])
