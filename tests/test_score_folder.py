"""Scoring folders of any system's media: what cannot be read is named, a kill costs one chunk, summaries have intervals."""

from __future__ import annotations

import dataclasses
import json
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from eval.items import image_items, video_items
from eval.metrics.frame_quality import ImagingQuality
from eval.metrics.vbench import Entry
from eval.score_folder import Scorer, score_folder, summary
from eval.scorers import (
    clip_scorer,
    dino_scorer,
    embedded_frames_scorer,
    held_out_images,
    motion_scorer,
    quality_scorer,
    reward_scorer,
    static_scorer,
    viclip_scorer,
)
from eval.videos import write_mp4, write_webp
from otca.__main__ import main
from otca.errors import InputError, RewardError
from otca.serving import make_app
from otca.tasks import scenes
from otca.types import Prompt
from tests.servers import Told, running
from tests.test_videos import make_bad, save_frames


def scored(folder, prompts=None, scorers=None):
    items, _ = video_items(folder, prompts)
    scorers = scorers or [motion_scorer(), embedded_frames_scorer()]
    return score_folder(items, scorers, folder.parent / "partial", progress=False)


def images(folder, prompts, scorers, partial="partial"):
    items, _ = image_items(folder, prompts)
    return score_folder(items, scorers, folder.parent / partial, progress=False)


@pytest.fixture
def drawings(tmp_path):
    """Six drawings of two prompts and their list."""
    prompts, rng = scenes.prompts("test", 2), np.random.default_rng(0)
    folder = tmp_path / "drawings"
    folder.mkdir()
    for prompt in prompts:
        for i in range(3):
            pixels = (scenes.render(scenes.draw_scene(prompt.spec, rng)) * 255).round().astype(np.uint8).transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / f"{prompt.id}_{i}.png")
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"id": p.id, "prompt": p.text, "spec": p.spec}) for p in prompts))
    return folder, path


def counting(calls, batch=2, fails_at=None, identity=""):
    """A scorer that notes every item it is asked about, and may fail at one."""

    def load():
        calls.append("load")

        def score(media, prompts):
            if fails_at is not None and sum(isinstance(c, int) for c in calls) >= fails_at:
                raise RewardError("reward 'count' failed")
            calls.extend(range(len(media)))
            return {"count": [float(v.frames_FCHW.mean()) for v in media]}

        return score

    return Scorer("count", load, batch, identity)


# --------------------------------------------------------------------------------------------------------------- videos


def test_scoring_a_folder_reports_what_it_cannot_read(tmp_path, video):
    folder = tmp_path / "videos"
    folder.mkdir()
    bad = make_bad(folder, video)
    write_webp(folder / "clip10.webp", video[:1].repeat(9, 1, 1, 1))
    write_mp4(folder / "clip2.mp4", video, 24)
    save_frames(folder / "clip1", video)
    (folder / "readme.txt").write_text("passed over")
    rows = scored(folder).set_index("file")
    assert set(rows.index) == {*bad, "clip1", "clip2.mp4", "clip10.webp"}
    assert [name for name in rows.index if name.startswith("clip")] == ["clip1", "clip2.mp4", "clip10.webp"]
    assert (rows.error != "").sum() == len(bad)
    metrics = [c for c in rows.columns if c not in ("frames", "fps", "height", "width", "error")]
    for name, word in bad.items():
        assert word in rows.error[name] and name in rows.error[name]
        assert rows.loc[name, metrics].isna().all()
    assert rows.loc["clip2.mp4", ["frames", "fps", "height", "width"]].tolist() == [9, 24, 64, 64]
    assert metrics[:3] == ["dynamic_degree_dis", "top_flow_dis", "motion_smoothness_dis"]
    assert rows.dynamic_degree_dis[["clip1", "clip10.webp"]].tolist() == [1, 0]
    assert rows.temporal_flickering["clip10.webp"] == 1


def test_prompts_are_matched(tmp_path, video):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a_0", "a_1", "special"):
        write_webp(folder / f"{name}.webp", video)
    listed = [{"id": "a", "prompt": "a red circle"}, {"id": "b", "prompt": "named by file", "file": "special.webp"}]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps(row) for row in listed))
    rows = scored(folder, prompts)
    assert rows.prompt_id.tolist() == ["a", "a", "b"] and rows.text.tolist()[2] == "named by file"
    write_webp(folder / "orphan.webp", video)
    with pytest.raises(InputError, match=r"1 videos have no prompt in .*orphan\.webp"):
        video_items(folder, prompts, strict=True)
    items, orphans = video_items(folder, prompts)
    assert orphans == ["orphan.webp"] and [item.name for item in items] == ["a_0.webp", "a_1.webp", "special.webp"]
    (folder / "orphan.webp").unlink()
    (folder / "special.webp").unlink()
    with pytest.raises(InputError, match=r"1 files are not among the videos, the first is special\.webp"):
        scored(folder, prompts)


def test_folders_without_a_readable_video_are_errors(tmp_path):
    folder = tmp_path / "videos"
    with pytest.raises(InputError, match="not found"):
        scored(folder)
    folder.mkdir()
    with pytest.raises(InputError, match="holds no video"):
        scored(folder)
    (folder / "text.mp4").write_text("text")
    with pytest.raises(InputError, match=r"none of 1 files can be scored; the first: .*text\.mp4"):
        scored(folder)


# --------------------------------------------------------------------------------------------------------------- images


def test_images_of_several_sizes_are_scored_by_size(drawings):
    folder, prompts = drawings
    Image.new("RGB", (40, 24), "white").save(folder / f"{next(folder.iterdir()).stem.split('_')[0]}_9.png")
    calls = []
    rows = images(folder, prompts, [counting(calls, batch=4)])
    assert len(rows) == 7 and rows["count"].notna().all() and (rows.error == "").all()
    assert set(zip(rows.height, rows.width)) == {(64, 64), (24, 40)}


def test_a_killed_scoring_goes_on_where_it_was(drawings):
    folder, prompts = drawings
    calls = []
    with pytest.raises(RewardError):
        images(folder, prompts, [counting(calls, fails_at=4)])
    assert len(calls) == 1 + 4
    path = folder.parent / "partial" / "count.csv"
    path.write_text(path.read_text()[:-3])  # a kill in the middle of a line
    again = []
    rows = images(folder, prompts, [counting(again)])
    assert len(again) == 1 + 3
    fresh = images(folder, prompts, [counting([])], "other")
    pd.testing.assert_frame_equal(rows, fresh)


def test_only_what_changed_is_scored_again(drawings):
    folder, prompts = drawings
    calls = []
    images(folder, prompts, [counting(calls)])
    victim = sorted(folder.iterdir())[0]
    Image.new("RGB", (64, 64), "red").save(victim)
    rows = images(folder, prompts, [counting(calls)])
    assert len(calls) == 2 + 7 and rows.set_index("file")["count"][victim.name] == pytest.approx(1 / 3)
    images(folder, prompts, [counting(calls)])
    assert len(calls) == 2 + 7
    images(folder, prompts, [counting(calls, identity="other weights")])
    assert len(calls) == 3 + 13


def test_rewards_and_judges_of_a_folder(drawings):
    folder, prompts = drawings
    rows = images(folder, prompts, [reward_scorer("alignment", 4), held_out_images(4)])
    assert rows.alignment.min() > 0.7 and rows.judge_correct.tolist() == [1.0] * 6
    assert rows.columns[:4].tolist() == ["file", "prompt_id", "skill", "text"] and "clip_score" in rows


def test_the_summary_resamples_prompts():
    rows = pd.DataFrame({"file": list("abcd"), "prompt_id": list("xxyy"), "width": 64, "r": [0.0, 0.0, 1.0, 1.0], "error": ""})
    line = summary(rows).iloc[0]
    assert (line["mean"], line["low"], line["high"], line["items"], line["prompts"]) == (0.5, 0.0, 1.0, 4, 2)
    assert np.isnan(summary(rows[:2]).iloc[0]["low"])


def test_what_is_too_short_for_motion_lacks_that_alone(tmp_path, video):
    """Its other scores stay, and its row says what is missing."""
    folder = tmp_path / "videos"
    folder.mkdir()
    save_frames(folder / "one", video[:1])
    save_frames(folder / "two", video[:2])
    save_frames(folder / "whole", video)
    rows = scored(folder, scorers=[motion_scorer(), embedded_frames_scorer(), counting([])]).set_index("file")
    assert rows.error["two"] == f"motion: video {folder / 'two'}: has 2 frame(s), at least 3 are needed"
    assert (
        rows.error["one"].count("needed") == 1 and "; embedded_frames: video" in rows.error["one"] and rows.error["whole"] == ""
    )
    assert rows["count"].notna().all() and rows["frames"].tolist() == [1, 2, 9]
    assert rows.frame_consistency_embedded.notna().tolist() == [False, True, True]
    assert rows.warping_error_dis.notna().tolist() == [False, False, True]


def test_a_folder_that_no_scorer_can_score_is_refused(tmp_path, video):
    (tmp_path / "videos").mkdir()
    save_frames(tmp_path / "videos" / "two", video[:2])
    with pytest.raises(InputError, match="none of 1 files can be scored; the first: motion: video .*two: has 2 frame"):
        scored(tmp_path / "videos", scorers=[motion_scorer()])


def test_what_goes_away_meanwhile_has_no_numbers(drawings):
    folder, prompts = drawings
    victim = sorted(folder.iterdir())[0]

    def load():
        victim.unlink()
        return lambda media, prompts: {"removed": [1.0] * len(media)}

    rows = images(folder, prompts, [counting([]), Scorer("removed", load)]).set_index("file")
    assert f"image {victim} cannot be read" in rows.error[victim.name] and (rows.error == "").sum() == 5
    assert rows.loc[victim.name, ["frames", "fps", "height", "width", "count", "removed"]].isna().all()
    assert rows.drop(victim.name)[["height", "count", "removed"]].notna().all(axis=None)


def test_two_scorers_of_one_column_are_refused(drawings):
    folder, prompts = drawings
    with pytest.raises(InputError, match=r"^column 'count' is filled by count and by again; leave one of them out$"):
        images(folder, prompts, [counting([]), dataclasses.replace(counting([]), name="again")])


def test_one_model_is_in_memory_at_a_time(drawings):
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

    rows = images(*drawings, [scorer("a"), scorer("b"), scorer("c")])
    assert most == [1] * 9 and (rows[["a", "b", "c"]] == 1).all(axis=None) and not alive


# ---------------------------------------------------------------------------------------------------------------- rates


def test_media_of_one_rate_are_scored_together(tmp_path, video):
    """A reward that depends on the rate is told each video's own; one that does not is left alone."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, fps in (("a", 8), ("b", 8), ("c", 24), ("d", 12.5)):
        write_mp4(folder / f"{name}.mp4", video, fps)
    save_frames(folder / "e", video)  # states no rate
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\nc\nd\ne")
    scorers = [reward_scorer("tests.test_score_folder:Rate", 8), reward_scorer("tests.test_score_folder:Size", 8)]
    rows = scored(folder, prompts, scorers)
    assert rows["rate"].tolist() == [8, 8, 24, 12.5, 8] and rows["rate"].tolist() == rows["fps"].tolist()
    assert rows["size"].tolist() == [2, 2, 1, 1, 1]


def test_pictures_have_no_rate(drawings):
    folder, prompts = drawings
    rows = images(folder, prompts, [reward_scorer("tests.test_score_folder:Rate", 8)])
    assert (rows["rate"] == Rate.fps).all()


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


# ------------------------------------------------------------------------------------------------------------- identity


def identity(scorer):
    return scorer.name, scorer.identity


def test_scores_are_of_the_weights_that_were_there(tmp_path):
    """A file of weights that is replaced makes another scorer, wherever it stands; the same file does not."""
    path = tmp_path / "weights.pth"
    entries = [Entry(Prompt("a", "a cup"), ("temporal_flickering",))]
    makers = (
        motion_scorer,
        dino_scorer,
        clip_scorer,
        viclip_scorer,
        lambda file: static_scorer(file, entries),
        lambda file: quality_scorer(ImagingQuality, file),
    )
    path.write_text("one")
    first = [identity(make(path)) for make in makers]
    assert len({name for name, _ in first}) == len(makers)
    assert [identity(make(path)) for make in makers] == first
    path.write_text("another")
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in zip(first, [identity(make(path)) for make in makers]))
    path.unlink()
    for make in makers:
        with pytest.raises(InputError, match=r"weights\.pth not found"):
            make(path)
    path.mkdir()  # as --dino took one before
    with pytest.raises(InputError, match=r"metric 'dino': .*weights\.pth is no file; give dino_vitbase16_pretrain\.pth itself"):
        dino_scorer(path)


def test_a_reward_of_ones_own_is_known_by_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = "class Own:\n    name, range, source, licence, revision = 'own', (0, 1), '', '', ''\n"
    (tmp_path / "own_reward.py").write_text(source)
    first = identity(reward_scorer("own_reward:Own", 4))
    assert first == identity(reward_scorer("own_reward:Own", 4))
    (tmp_path / "own_reward.py").write_text(source + "# changed\n")
    assert first != identity(reward_scorer("own_reward:Own", 4))


def test_a_servers_revision_is_part_of_a_scorers_identity():
    """And the server is asked for it before anything is scored."""
    identities = []
    for revision in ("one", "two"):
        reward = Told(torch.zeros(5))
        reward.revision = revision
        with running(make_app(reward)) as url:
            scorer = reward_scorer(f"{url}/told", 4)
            identities.append(scorer.identity.replace(url, ""))
            assert f"{revision} at {url}/told" in scorer.identity
    assert identities[0] != identities[1]
    with pytest.raises(InputError, match=f"reward {url}/told: no answer"):
        reward_scorer(f"{url}/told?retries=0", 4)


def test_pictures_of_no_known_task_are_not_scored_by_readers_of_drawings(drawings, tmp_path, capsys):
    """`aesthetic` would find nothing on a photograph and answer 0; the published one has another name."""
    folder, _ = drawings
    (tmp_path / "bare.csv").write_text("file,prompt\n" + "".join(f"{path.name},a dog\n" for path in sorted(folder.glob("*.png"))))
    argv = ["score", "--images", str(folder), "--prompts", str(tmp_path / "bare.csv"), "--rewards", "clip,aesthetic"]
    assert main([*argv, "--out", str(tmp_path / "scores.csv")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "rewards aesthetic read drawings of the embedded tasks alone" in said and "(do you mean aesthetic_v2?)" in said
    assert not (tmp_path / "scores.csv").exists()
