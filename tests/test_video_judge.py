"""The held-out video judge: right on renders and reconstructions, never fooled by still, scrambled or spoiled clips."""

from __future__ import annotations

import ast
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

import otca.tasks.video_judge as judge_module
from otca.files import EMBEDDED, resolve_model
from otca.tasks.video_judge import Track, VideoJudge, fulfils, motion_accuracy
from otca.tasks.video_scenes import COLORS, FRAMES, SHAPES, SKILLS, draw_clip, motion, path, prompts, render_clip
from otca.types import Prompt
from reproduce.pretrain.drawings import FAULTS, draw_thing, random_background
from reproduce.pretrain.video_judge import near_legal, random_spec, random_track, rendered, video_judge_accuracy
from reproduce.pretrain.video_vae import reconstruct_clips


@pytest.fixture(scope="module")
def judge() -> VideoJudge:
    return VideoJudge.from_pretrained(resolve_model("embedded:video_judge"))


def some_clips(count: int, seed: int, skills=SKILLS):
    rng = np.random.default_rng(seed)
    return [draw_clip(random_spec(rng, skills[i % len(skills)]), rng) for i in range(count)]


def rough_copy(media_BFCHW: torch.Tensor) -> torch.Tensor:
    """Stands in for an autoencoder: half the resolution, noise, and an echo of the frame before."""
    small = torch.nn.functional.avg_pool2d(media_BFCHW.flatten(0, 1), 2)
    copy = torch.nn.functional.interpolate(small, scale_factor=2.0, mode="bilinear").view_as(media_BFCHW)
    copy = torch.cat([copy[:, :1], 0.85 * copy[:, 1:] + 0.15 * copy[:, :-1]], dim=1)
    generator = torch.Generator().manual_seed(int(1000 * media_BFCHW.double().sum()))
    return (copy + 0.03 * torch.randn(copy.shape, generator=generator)).clamp(0, 1)


# ------------------------------------------------------------------------------------------------ with the shipped weights


@pytest.mark.parametrize("kind", ["clean", "changed"])
def test_right_on_renders(judge, kind):
    accuracy = video_judge_accuracy(judge, 420, kind, seed=1)
    assert accuracy["overall"] >= 0.98
    assert min(accuracy[skill] for skill in SKILLS) >= 0.95


@pytest.mark.parametrize("kind", ["reconstruction", "changed_reconstruction"])
def test_right_on_blurred_noisy_and_echoing_copies(judge, kind):
    accuracy = video_judge_accuracy(judge, 210, kind, rough_copy, seed=1)
    assert accuracy["overall"] >= 0.95


@pytest.mark.parametrize("kind", ["reconstruction", "changed_reconstruction"])
def test_right_on_reconstructions(judge, kind):
    """Of the shipped autoencoder."""
    vae = AutoencoderKLWan.from_pretrained(f"{resolve_model('embedded:video')}/vae").eval()
    accuracy = video_judge_accuracy(judge, 210, kind, functools.partial(reconstruct_clips, vae), seed=1)
    assert accuracy["overall"] >= 0.95


def test_tracks_follow_the_objects_to_a_pixel(judge):
    clips = some_clips(42, seed=2)
    media, _ = rendered(clips)
    for clip, tracks in zip(clips, judge.detect(media)):
        for mover in clip.objects:
            assert min(np.abs(mover.center_F2 - t.center_F2).max() for t in tracks if len(t.center_F2) == FRAMES) < 1.5


def test_speeds_and_directions_are_read(judge):
    clips = some_clips(60, seed=3, skills=("direction", "speed", "turning"))
    media, wanted = rendered(clips)
    for clip, (track,) in zip(clips, judge.detect(media)):
        first = np.linalg.norm(np.diff(clip.objects[0].center_F2, axis=0), axis=1)[0]
        assert abs(track.speed - first) < 0.35
    accuracy = judge.accuracy(media, wanted)
    assert accuracy["direction"].mean() >= 0.98
    assert torch.equal(~accuracy["speed"].isnan(), torch.tensor([p.spec["skill"] == "speed" for p in wanted]))
    assert accuracy["speed"].nanmean() >= 0.98


def spoil(name: str, media: torch.Tensor, clips: list, rng: np.random.Generator) -> torch.Tensor:
    """Media that no judge may accept for their clips' specs."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    if name == "frozen":
        return media[:, :1].expand_as(media)
    if name == "half frozen":
        return torch.cat([media[:, :5], media[:, 4:5].expand(-1, 4, -1, -1, -1)], dim=1)
    if name == "shuffled":
        return torch.stack([clip[torch.randperm(FRAMES, generator=generator)] for clip in media])
    if name == "reversed":
        return media.flip(1)
    if name == "blank":
        return torch.rand(len(media), 1, 3, 1, 1, generator=generator).expand_as(media)
    if name == "noise":
        return torch.rand(media.shape, generator=generator)
    if name == "double exposure":
        return (media + media.roll(1, 0)) / 2
    if name == "faded":
        return 0.6 + 0.4 * media
    out = media.clone()
    for clip, drawn in zip(out, clips):
        begin = int(rng.integers(2, FRAMES - 2))
        if name == "jumping":
            clip[begin:] = clip[begin:].roll(int(rng.choice([-7, 7])), dims=-1)
            continue
        when = slice(begin, begin + int(rng.integers(1, 4))) if name == "vanishing" else slice(begin, None)
        one = drawn.objects[0]
        color = str(rng.choice([c for c in COLORS if c != one.color]))
        others = {
            "new shape": [replace(one, shape=str(rng.choice([s for s in SHAPES if s != one.shape])))],
            "new color": [replace(one, color=color, rgb=COLORS[color])],
            "vanishing": [],
        }[name]
        clip[when] = torch.from_numpy(render_clip(replace(drawn, objects=(*others, *drawn.objects[1:]))))[when]
    return out


SPOILED = ("frozen", "half frozen", "shuffled", "reversed", "blank", "noise", "double exposure", "faded")
SPOILED += ("jumping", "new shape", "new color", "vanishing")


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_clips_fail(judge, name):
    skills = [s for s in SKILLS if name != "reversed" or s != "bouncing"]  # a bounce is its own reverse
    clips = some_clips(105, seed=4, skills=skills)
    media, wanted = rendered(clips)
    assert judge.verdict(spoil(name, media, clips, np.random.default_rng(5)), wanted).float().mean() <= 0.02


@pytest.mark.parametrize("fault", FAULTS)
def test_every_kind_of_malformed_object_is_refused(judge, fault):
    rng = np.random.default_rng(8)
    media = np.empty((60, FRAMES, 3, 64, 64), np.float32)
    for clip in media:
        center_F2, look = 22 + path(motion("move", "lower right"), 2.5), int(rng.integers(2**31))
        background, radius = random_background(rng), rng.uniform(8, 11)
        for frame, (x, y) in zip(clip, center_F2):
            frame[:] = draw_thing(background, x, y, radius, fault, 0.5, np.random.default_rng(look))[0]
    found = judge.detect(torch.from_numpy(media))
    demandable = [[t.valid and t.shape in SHAPES and t.color in COLORS for t in tracks] for tracks in found]
    passed = np.mean([these == [True] for these in demandable])
    assert passed <= 0.15, f"{passed:.2f} pass as one object that a prompt can demand"


def test_an_object_too_many_fails(judge):
    clips = some_clips(42, seed=6, skills=("two_objects",))
    media, _ = rendered(clips)
    alone = [Prompt(id="p", text="", spec={"skill": "direction", "objects": clip.spec["objects"][:1]}) for clip in clips]
    assert not judge.verdict(media, alone).any()


def test_verdict_does_not_depend_on_the_batch(judge):
    media, wanted = rendered(some_clips(21, seed=7))
    together = judge.verdict(media, wanted)
    alone = torch.cat([judge.verdict(m[None], [p]) for m, p in zip(media, wanted)])
    assert torch.equal(together, alone) and together.dtype == torch.bool and together.shape == (21,)


def test_shipped_weights_are_small(judge):
    assert (EMBEDDED / "video_judge" / "model.safetensors").stat().st_size <= 600_000


# ------------------------------------------------------------------------------------------------- without shipped weights


def track(shape="circle", color="red", speed=3.0, confidence=0.9, steady=True, **moving) -> Track:
    m = motion(**({"kind": "move", "direction": "right", "speed": "fast"} | moving))
    return Track(shape, color, m, m["direction"] or "nowhere", speed, confidence, steady, np.zeros((FRAMES, 2)))


def demand(shape="circle", color="red", **moving) -> dict:
    return {"shape": shape, "color": color, "motion": motion(**({"kind": "move", "direction": "right"} | moving))}


def test_fulfils_wants_each_object_once_in_its_motion():
    spec = {"objects": [demand(), demand("cross", "blue", direction="up")]}
    first, second = track(), track("cross", "blue", direction="up")
    assert fulfils([first, second], spec) and fulfils([second, first], spec)
    assert not fulfils([first], spec) and not fulfils([first, second, track("square")], spec)
    for wrong in (
        track("cross", "green", direction="up"),
        track("square", "blue", direction="up"),
        track("cross", "blue", direction="down"),
        track("cross", "blue", kind="bounce", direction="up", speed=None),
        track("cross", "blue", direction="up", confidence=0.4),
        track("cross", "blue", direction="up", steady=False),
        track("cross", "other", direction="up"),
        track("malformed", "blue", direction="up"),
    ):
        assert not fulfils([first, wrong], spec)
    assert fulfils([track()], {"objects": [demand(speed="fast")]})
    assert not fulfils([track()], {"objects": [demand(speed="slow")]})
    turn = {"objects": [demand(kind="turn", then="up")]}
    assert fulfils([track(kind="turn", then="up", speed=None)], turn)
    assert not fulfils([track(kind="turn", then="down", speed=None)], turn)


def test_motion_accuracy_looks_at_directions_and_speeds_alone():
    fast = {"objects": [demand(speed="fast")]}
    assert motion_accuracy([track("square", "blue", speed=3.0)], fast) == {"direction": 1.0, "speed": 1.0}
    assert motion_accuracy([track(speed=2.0, direction="up")], fast) == {"direction": 0.0, "speed": 0.0}
    assert motion_accuracy([], fast) == {"direction": 0.0, "speed": 0.0}
    pair = {"objects": [demand(), demand("cross", "blue", direction="up")]}
    found = [track("cross", "blue", direction="right"), track(direction="right")]
    assert motion_accuracy(found, pair)["direction"] == 0.5  # each track stands for the object it looks like
    assert np.isnan(motion_accuracy(found, pair)["speed"])
    grow = {"objects": [demand(kind="grow", direction=None)]}
    assert all(np.isnan(v) for v in motion_accuracy([track()], grow).values())


def test_synthetic_tracks_are_labelled_by_what_they_are():
    rng = np.random.default_rng(0)
    legal = path(motion("turn", "right", "up"), 3.0) @ [1, 1j]
    assert near_legal(legal, np.zeros(FRAMES)) and near_legal(np.zeros(FRAMES, complex), np.linspace(0, 0.7, FRAMES))
    assert not near_legal(rng.permutation(legal), np.zeros(FRAMES))
    assert not near_legal(legal, np.linspace(0, 0.7, FRAMES)) and not near_legal(np.zeros(FRAMES, complex), np.zeros(FRAMES))
    for _ in range(200):
        center, log_radius, kind, direction, then, speed = random_track(rng)
        name = judge_module.KINDS[kind]
        assert np.isfinite(center).all() and np.isfinite(log_radius).all()
        assert (then >= 0) <= (direction >= 0)
        if name == "move":
            unit = judge_module.DIRECTION_CLASSES[direction]
            ahead = (center[-1] - center[0]) * np.conj(path(motion("move", unit), 1.0)[1] @ [1, 1j])
            assert abs(ahead.real / 8 - speed) < 0.4
        elif name in ("grow", "shrink"):
            assert (log_radius[-1] > log_radius[0]) == (name == "grow") and speed == 0


def test_wrong_media_are_refused():
    judge = VideoJudge().eval()
    prompt = prompts("test", 1)
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 64, 64\)"):
        judge.verdict(torch.zeros(1, 2, 3, 64, 64), prompt)
    with pytest.raises(ValueError, match="NaN"):
        judge.verdict(torch.full((1, FRAMES, 3, 64, 64), float("nan")), prompt)
    with pytest.raises(ValueError, match="2 clips but 1 prompts"):
        judge.verdict(torch.zeros(2, FRAMES, 3, 64, 64), prompt)
    with pytest.raises(RuntimeError, match=r"eval\(\)"):
        judge.train().detect(torch.zeros(1, FRAMES, 3, 64, 64))


def test_saves_and_loads(tmp_path):
    VideoJudge().save_pretrained(tmp_path / "first")  # rounds to half precision
    judge = VideoJudge.from_pretrained(tmp_path / "first")
    judge.save_pretrained(tmp_path / "second")
    again = VideoJudge.from_pretrained(tmp_path / "second")
    for (name, one), other in zip(judge.state_dict().items(), again.state_dict().values()):
        assert torch.equal(one, other) and one.dtype != torch.half, name
    assert (tmp_path / "first" / "model.safetensors").stat().st_size <= 600_000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    VideoJudge().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / name} not found; train it with"):
        VideoJudge.from_pretrained(tmp_path)


def test_shares_no_code_with_the_training_verifiers():
    tree = ast.parse(Path(judge_module.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {name for name in modules if name.startswith("otca")}
    assert ours == {"otca.tasks", "otca.tasks.judge", "otca.tasks.video_frames", "otca.tasks.video_scenes", "otca.types"}
    fitted = {"path", "PROFILES", "signed_distance"}  # the outlines and profiles that the verifiers fit
    assert not fitted & {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
