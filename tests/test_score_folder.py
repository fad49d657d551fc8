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

from eval.items import find_items
from eval.metrics.encoders import embedded_encoder
from eval.score_folder import Scorer, score_folder, summary
from eval.scorers import frame_likeness, metric_scorer, motion, reward_scorer
from eval.videos import write_mp4, write_webp
from otca.errors import InputError, RewardError
from otca.serving import make_app
from tests.servers import Told, running
from tests.test_media import make_bad, save_frames

MOTION = metric_scorer("motion", lambda: motion(None, "cpu"))
FRAMES = metric_scorer("embedded_frames", lambda: frame_likeness(embedded_encoder))


def scored(folder, scorers=(MOTION, FRAMES), still=False, partial="partial"):
    """Rows of all media of a folder, each with its name as the prompt."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.glob("*"))]
    prompts = folder.parent / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"file": name, "prompt": f"of {name}"}) for name in names))
    return score_folder(find_items(folder, still, prompts).items, scorers, folder.parent / partial, progress=False)


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


def test_scoring_a_folder_reports_what_it_cannot_read(clips, video):
    bad = make_bad(clips, video)
    write_webp(clips / "clip10.webp", video[:1].repeat(9, 1, 1, 1))
    write_mp4(clips / "clip2.mp4", video, 24)
    save_frames(clips / "clip1", video)
    rows = scored(clips).set_index("file")
    assert set(rows.index) == {*bad, "clip1", "clip2.mp4", "clip10.webp"}
    assert [name for name in rows.index if name.startswith("clip")] == ["clip1", "clip2.mp4", "clip10.webp"]
    metrics = list(rows.columns)[list(rows.columns).index("width") + 1 : -1]
    for name, word in bad.items():
        assert word in rows.error[name] and name in rows.error[name] and rows.loc[name, metrics].isna().all()
    assert (rows.error != "").sum() == len(bad)
    assert rows.loc["clip2.mp4", ["frames", "fps", "height", "width"]].tolist() == [9, 24, 64, 64]
    assert rows.dynamic_degree_dis[["clip1", "clip10.webp"]].tolist() == [1, 0]
    assert rows.temporal_flickering["clip10.webp"] == 1


def test_folders_without_a_readable_video_are_errors(clips, video):
    with pytest.raises(InputError, match="holds none that is read"):
        scored(clips)
    (clips / "text.mp4").write_text("text")
    with pytest.raises(InputError, match=r"none of 1 files can be scored; the first: .*text\.mp4"):
        scored(clips)
    (clips / "text.mp4").unlink()
    save_frames(clips / "two", video[:2])
    with pytest.raises(InputError, match="none of 1 files can be scored; the first: motion: video .*two: has 2 frame"):
        scored(clips, [MOTION])


def test_what_is_too_short_for_motion_lacks_that_alone(clips, video):
    """Its other scores stay, and its row says what is missing."""
    for name, frames in (("one", 1), ("two", 2), ("whole", 9)):
        save_frames(clips / name, video[:frames])
    rows = scored(clips, [MOTION, FRAMES, counting([])]).set_index("file")
    assert rows.error["two"] == f"motion: video {clips / 'two'}: has 2 frame(s), at least 3 are needed"
    assert "; embedded_frames: video" in rows.error["one"] and rows.error["whole"] == ""
    assert rows["count"].notna().all() and rows["frames"].tolist() == [1, 2, 9]
    assert rows.frame_consistency_embedded.notna().tolist() == [False, True, True]
    assert rows.warping_error_dis.notna().tolist() == [False, False, True]


def test_a_killed_scoring_goes_on_where_it_was_and_scores_only_what_changed(squares):
    Image.new("RGB", (40, 24), "white").save(squares / "9.png")  # of another size, so in a chunk of its own
    with pytest.raises(RewardError):
        scored(squares, [counting([], fails_at=4)], True)
    path = squares.parent / "partial" / "count.csv"
    path.write_text(path.read_text()[:-3])  # a kill in the middle of a line
    calls = []
    rows = scored(squares, [counting(calls)], True)
    assert len(calls) == 1 + 4
    pd.testing.assert_frame_equal(rows, scored(squares, [counting([])], True, "other"))
    Image.new("RGB", (64, 64), "red").save(squares / "3.png")
    rows = scored(squares, [counting(calls)], True)
    assert len(calls) == 2 + 5 and rows.set_index("file")["count"]["3.png"] == pytest.approx(1 / 3)
    scored(squares, [counting(calls, identity="other weights")], True)
    assert len(calls) == 3 + 12


def test_what_goes_away_meanwhile_has_no_numbers(squares):
    victim = squares / "2.png"

    def load():
        victim.unlink()
        return lambda media, prompts: {"removed": [1.0] * len(media)}

    rows = scored(squares, [counting([]), Scorer("removed", load)], True).set_index("file")
    assert f"image {victim} cannot be read" in rows.error[victim.name] and (rows.error == "").sum() == 5
    assert rows.loc[victim.name, ["frames", "fps", "height", "width", "count", "removed"]].isna().all()
    assert rows.drop(victim.name)[["height", "count", "removed"]].notna().all(axis=None)


def test_two_scorers_of_one_column_are_refused(squares):
    with pytest.raises(InputError, match=r"^column 'count' is filled by count and by again; leave one of them out$"):
        scored(squares, [counting([]), dataclasses.replace(counting([]), name="again")], True)


def test_one_model_is_in_memory_at_a_time(squares):
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
    scorers = [reward_scorer(f"{__name__}:Rate", 8), reward_scorer(f"{__name__}:Size", 8)]
    rows = scored(clips, scorers)
    assert rows["rate"].tolist() == [8, 8, 24, 12.5, 8] == rows["fps"].tolist() and rows["size"].tolist() == [2, 2, 1, 1, 1]
    assert (scored(squares, scorers, True, "pictures")["rate"] == Rate.fps).all()


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


def test_a_servers_revision_is_part_of_a_scorers_identity():
    """And the server is asked for it before anything is scored."""
    reward = Told(torch.zeros(5))
    reward.revision = "one"
    with running(make_app(reward)) as url:
        assert f"one at {url}/told" in reward_scorer(f"{url}/told", 4).identity
    with pytest.raises(InputError, match=f"reward {url}/told: no answer"):
        reward_scorer(f"{url}/told?retries=0", 4)
