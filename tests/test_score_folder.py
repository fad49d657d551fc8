"""Scoring folders of any system's media: what cannot be read is named, a kill costs one chunk, summaries have intervals."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from eval.metrics.encoders import embedded_encoder
from eval.score_folder import Scorer, image_items, score_folder, summary, video_items
from eval.scorers import held_out_images, motion_scorer, reward_scorer
from eval.videos import write_mp4, write_webp
from otca.__main__ import main
from otca.embedded import scenes
from otca.errors import InputError, RewardError
from tests.test_videos import make_bad, save_frames


def motion():
    return motion_scorer(None, [embedded_encoder()])


def scored(folder, prompts=None, partial=None):
    return score_folder(video_items(folder, prompts), [motion()], partial or folder.parent / "partial", progress=False)


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
        scored(folder, prompts)
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
    rows = score_folder(image_items(folder, prompts), [counting(calls, batch=4)], folder.parent / "partial", progress=False)
    assert len(rows) == 7 and rows["count"].notna().all() and (rows.error == "").all()
    assert set(zip(rows.height, rows.width)) == {(64, 64), (24, 40)}


def test_a_killed_scoring_goes_on_where_it_was(drawings):
    folder, prompts = drawings
    items, partial, calls = image_items(folder, prompts), folder.parent / "partial", []
    with pytest.raises(RewardError):
        score_folder(items, [counting(calls, fails_at=4)], partial, progress=False)
    assert len(calls) == 1 + 4
    path = partial / "count.csv"
    path.write_text(path.read_text()[:-3])  # a kill in the middle of a line
    again = []
    rows = score_folder(items, [counting(again)], partial, progress=False)
    assert len(again) == 1 + 3
    fresh = score_folder(items, [counting([])], folder.parent / "other", progress=False)
    pd.testing.assert_frame_equal(rows, fresh)


def test_only_what_changed_is_scored_again(drawings):
    folder, prompts = drawings
    partial, calls = folder.parent / "partial", []
    score_folder(image_items(folder, prompts), [counting(calls)], partial, progress=False)
    victim = sorted(folder.iterdir())[0]
    Image.new("RGB", (64, 64), "red").save(victim)
    rows = score_folder(image_items(folder, prompts), [counting(calls)], partial, progress=False)
    assert len(calls) == 2 + 7 and rows.set_index("file")["count"][victim.name] == pytest.approx(1 / 3)
    score_folder(image_items(folder, prompts), [counting(calls)], partial, progress=False)
    assert len(calls) == 2 + 7
    score_folder(image_items(folder, prompts), [counting(calls, identity="other weights")], partial, progress=False)
    assert len(calls) == 3 + 13


def test_rewards_and_judges_of_a_folder(drawings):
    folder, prompts = drawings
    scorers = [reward_scorer("alignment", 4), held_out_images(4)]
    rows = score_folder(image_items(folder, prompts), scorers, folder.parent / "partial", progress=False)
    assert rows.alignment.min() > 0.7 and rows.judge_correct.tolist() == [1.0] * 6
    assert rows.columns[:4].tolist() == ["file", "prompt_id", "skill", "text"] and "clip_score" in rows


def test_the_summary_resamples_prompts():
    rows = pd.DataFrame({"file": list("abcd"), "prompt_id": list("xxyy"), "width": 64, "r": [0.0, 0.0, 1.0, 1.0], "error": ""})
    line = summary(rows).iloc[0]
    assert (line["mean"], line["low"], line["high"], line["items"], line["prompts"]) == (0.5, 0.0, 1.0, 4, 2)
    assert np.isnan(summary(rows[:2]).iloc[0]["low"])


def test_a_motion_metric_names_what_is_too_short(tmp_path, video):
    folder = tmp_path / "videos"
    folder.mkdir()
    save_frames(folder / "short", video[:2])
    save_frames(folder / "whole", video)
    rows = scored(folder).set_index("file")
    assert "at least 3 are needed" in rows.error["short"] and rows.error["whole"] == ""


def test_pictures_of_no_known_task_are_not_scored_by_readers_of_drawings(drawings, tmp_path, capsys):
    """`aesthetic` would find nothing on a photograph and answer 0; the published one has another name."""
    folder, _ = drawings
    (tmp_path / "bare.csv").write_text("file,prompt\n" + "".join(f"{path.name},a dog\n" for path in sorted(folder.glob("*.png"))))
    argv = ["score", "--images", str(folder), "--prompts", str(tmp_path / "bare.csv"), "--rewards", "clip,aesthetic"]
    assert main([*argv, "--out", str(tmp_path / "scores.csv")]) == 2
    said = capsys.readouterr().err
    assert "rewards aesthetic read drawings of the embedded tasks alone" in said and "(do you mean aesthetic_v2?)" in said
    assert not (tmp_path / "scores.csv").exists()
