"""The embedded video task: the training verifier and the three training rewards."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional

from otca.files import resolve_model
from otca.tasks import video_frames, video_scenes, video_verifier
from otca.tasks.scenes import SIZE
from otca.tasks.video_rewards import MotionQuality, TextAlignment, VisualQuality
from otca.tasks.video_scenes import FRAMES, motion
from reproduce.pretrain.video_vae import reconstruct_clips

REWARDS = (VisualQuality(), MotionQuality(), TextAlignment())


def drawn(count, seed=0, change=False):
    """(prompts, clips) of fresh drawings that satisfy their prompts, or break them in one attribute."""
    rng = np.random.default_rng([seed, 9])
    prompts = video_scenes.prompts("test", count, seed)
    made = [video_scenes.draw_clip(p.spec, rng) for p in prompts]
    if change:
        made = [video_scenes.change_one_attribute(clip, rng) for clip in made]
    return prompts, made


def rendered(clips) -> torch.Tensor:
    return torch.from_numpy(np.stack([video_scenes.render_clip(clip) for clip in clips]))


def worn(media_BFCHW, seed=0):
    """Half resolution and back, 15 % of the frame before, colours off by up to 0.05, noise of 0.03: about 26 dB."""
    generator = torch.Generator().manual_seed(seed)
    small = functional.avg_pool2d(media_BFCHW.flatten(0, 1), 2)
    soft = functional.interpolate(small, scale_factor=2, mode="bilinear").view_as(media_BFCHW)
    soft[:, 1:] = 0.85 * soft[:, 1:] + 0.15 * soft[:, :-1]
    tint = 0.1 * torch.rand(len(soft), 1, 3, 1, 1, generator=generator) - 0.05
    return (soft + tint + 0.03 * torch.randn(soft.shape, generator=generator)).clamp(0, 1)


@lru_cache(maxsize=1)
def standard():
    """(prompts, clips, media, scores (3, B)) of 56 clean clips."""
    prompts, clips = drawn(56, seed=2)
    media = rendered(clips)
    return prompts, clips, media, scores(media, prompts)


def scores(media, prompts) -> np.ndarray:
    """vq, mq, ta: (3, B)."""
    return np.stack([reward.score(media, prompts).numpy() for reward in REWARDS])


def track_of(path_F2, growth=0.0) -> video_verifier.Track:
    """A track along a given path, without pixels."""
    area = 200 * np.exp(2 * np.linspace(0, growth, FRAMES))
    sure, mask = np.zeros(6), np.zeros((SIZE, SIZE), bool)
    segments = [video_frames.Segment(sure, sure, x, y, a, 1.0, mask, np.zeros(3)) for (x, y), a in zip(path_F2, area)]
    return video_verifier.Track(np.arange(FRAMES), tuple(segments))


# ------------------------------------------------------------------------------------------------------------- verifier


@pytest.mark.parametrize("change", [False, True])
def test_verifier_is_right_on_renders(change):
    """≥ 99 % on 700 clean renders and ≥ 98 % for every skill, and on as many with one attribute changed."""
    prompts, clips = drawn(700, change=change)
    right = [
        video_verifier.satisfied(video_verifier.read(video_scenes.render_clip(c)), p.spec) != change
        for p, c in zip(prompts, clips)
    ]
    assert np.mean(right) >= 0.99
    assert min(np.mean(right[i :: len(video_scenes.SKILLS)]) for i in range(len(video_scenes.SKILLS))) >= 0.98


@pytest.mark.parametrize("change", [False, True])
def test_verifier_is_right_on_worn_clips(change):
    """≥ 97 % on blurred, ghosted, tinted and noisy clips, a stand-in for a lossy autoencoder."""
    prompts, clips = drawn(350, seed=1, change=change)
    media = worn(rendered(clips)).numpy()
    assert np.mean([video_verifier.satisfied(video_verifier.read(m), p.spec) != change for m, p in zip(media, prompts)]) >= 0.97


@pytest.mark.parametrize("change", [False, True])
def test_verifier_is_right_on_reconstructions(change):
    """≥ 95 % through the shipped autoencoder."""
    vae = AutoencoderKLWan.from_pretrained(f"{resolve_model('embedded:video')}/vae").eval()
    prompts, clips = drawn(210, seed=3, change=change)
    media = reconstruct_clips(vae, rendered(clips)).numpy()
    assert np.mean([video_verifier.satisfied(video_verifier.read(m), p.spec) != change for m, p in zip(media, prompts)]) >= 0.95


def test_tracks_follow_the_objects():
    """Every object is one track over all frames, its centre within half a pixel and its growth within 0.1."""
    _, clips, media, _ = standard()
    for clip, frames in zip(clips, media.numpy()):
        reading = video_verifier.read(frames)
        assert len(reading.tracks) == len(reading.objects) == len(clip.objects) and reading.speck_area == 0
        for mover in clip.objects:
            center_F = mover.center_F2 @ np.array([1, 1j])
            track = min(reading.tracks, key=lambda t: abs(t.center_N[0] - center_F[0]))
            assert track.presence == 1 and np.abs(track.center_N - center_F).max() < 0.6
            assert abs(track.growth - np.log(mover.radius_F[-1] / mover.radius_F[0])) < 0.1


def every_motion() -> list[dict]:
    """Each motion of the grammar once."""
    specs = [s for skill in video_scenes.SKILLS if skill != "two_objects" for s in video_scenes.all_specs(skill)]
    return list({str(s["objects"][0]["motion"]): s["objects"][0]["motion"] for s in specs}.values())


@pytest.mark.parametrize("seed", range(3))
def test_every_motion_is_told_from_every_other(seed):
    """A track drawn by one motion, 0.12 px of noise, matches that motion by ≥ 0.85 and any that contradicts it by ≤ 0.6."""
    rng = np.random.default_rng(seed)
    known = every_motion()
    assert len(known) == 34
    for m in known:
        speed = rng.uniform(*video_scenes.SPEED_RANGE[m["speed"] or "fast"])
        growth = {"grow": 1, "shrink": -1}.get(m["kind"], 0) * np.log(rng.uniform(*video_scenes.GROWTH))
        track = track_of(32 + video_scenes.path(m, speed) + rng.normal(0, 0.12, (FRAMES, 2)), growth)
        for other in known:
            match = video_verifier.motion_match(track, other)
            agrees = {**other, "speed": None} == {**m, "speed": None} and other["speed"] in (None, m["speed"] or "fast")
            assert match >= 0.85 if agrees else match <= 0.6, (m, other)


def test_a_half_right_motion_earns_a_part():
    """Wrong manner or one right half of a turn scores between the demanded motion and its opposite; heading is monotone."""
    turn = motion("turn", "right", "up")

    def match(demand, drawn_as, speed=3.6):
        return video_verifier.motion_match(track_of(32 + video_scenes.path(drawn_as, speed)), demand)

    steps = [match(turn, m) for m in (turn, motion("move", "right"), motion("move", "left"))]
    assert steps[0] > 0.9 and 0.15 < steps[1] < 0.5 and steps[2] < 0.15
    stop = motion("stop_and_go", "right")
    assert match(stop, stop) > 0.9 > 0.5 > match(stop, motion("move", "right")) > 0.3
    slow = motion("move", "right", speed="slow")
    by_speed = [match(slow, slow, speed) for speed in (1.5, 2.2, 2.5, 2.8, 3.6)]
    assert by_speed == sorted(by_speed, reverse=True) and by_speed[0] > 0.9 and by_speed[-1] < 0.5
    ramp = np.arange(FRAMES)[:, None]
    angles = np.radians([0, 15, 23, 30, 45, 90, 135, 180])
    headings = [
        video_verifier.motion_match(track_of(32 + 3 * ramp * np.array([np.cos(a), np.sin(a)])), motion("move", "right"))
        for a in angles
    ]
    assert headings == sorted(headings, reverse=True) and abs(headings[2] - 0.5) < 0.03 and headings[-1] < 1e-3
    pace = [
        video_verifier.motion_match(track_of(32 + v * ramp * np.array([1.0, 0])), motion("move", "right")) for v in (0, 0.5, 1, 2)
    ]
    assert pace == sorted(pace) and pace[0] == 0
    growing = [
        video_verifier.motion_match(track_of(np.full((FRAMES, 2), 32), g), motion("grow")) for g in (-0.6, 0, 0.2, 0.4, 0.7)
    ]
    assert growing == sorted(growing) and growing[1] == 0 and growing[-1] > 0.95


def test_missing_and_surplus_objects_cost():
    rng = np.random.default_rng(0)
    spec = video_scenes.all_specs("two_objects")[0]
    pair = video_scenes.draw_clip(spec, rng)
    one = dataclasses.replace(pair, objects=pair.objects[:1])
    alone = spec | {"objects": spec["objects"][:1]}
    both, missing = (video_verifier.read(video_scenes.render_clip(clip)) for clip in (pair, one))
    assert video_verifier.satisfied(both, spec) and not video_verifier.satisfied(missing, spec)
    assert video_verifier.alignment(missing, spec) == pytest.approx(0.5 * video_verifier.alignment(both, spec), abs=0.03)
    assert video_verifier.satisfied(missing, alone) and not video_verifier.satisfied(both, alone)
    assert video_verifier.alignment(both, alone) == pytest.approx(0.7 * video_verifier.alignment(missing, alone), abs=0.01)


# -------------------------------------------------------------------------------------------------------------- rewards


def junk(count) -> dict[str, torch.Tensor]:
    """Clips that show nothing."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, FRAMES, 3, SIZE, SIZE)
    low = torch.rand(count * FRAMES, 3, 8, 8, generator=generator)
    smooth = functional.interpolate(low, size=SIZE, mode="bilinear").view(shape)
    palette = torch.tensor(list(video_scenes.COLORS.values()))
    return {
        "white": torch.ones(shape),
        "black": torch.zeros(shape),
        "palette": palette[torch.arange(count) % 4][:, None, :, None, None].expand(shape).contiguous(),
        "flashing": torch.rand(count, FRAMES, 3, 1, 1, generator=generator).expand(shape).contiguous(),
        "uniform noise": torch.rand(shape, generator=generator),
        "gaussian noise": (torch.randn(shape, generator=generator) * 0.3 + 0.5).clamp(0, 1),
        "smooth noise": smooth,
        "still noise": smooth[:, :1].expand(shape).contiguous(),
    }


@pytest.mark.parametrize("kind", list(junk(1)))
def test_showing_nothing_scores_worst_on_every_objective(kind):
    prompts, _, _, good = standard()
    worthless = scores(junk(40)[kind], prompts[:40])
    assert (worthless.mean(1) < 0.01).all() and (worthless.max(1) < 0.1).all()
    assert (worthless.max(1) < good.min(1) - 0.5).all()


def test_good_clips_score_high_on_every_objective_and_skill():
    """Means ≥ 0.85 for every skill, so no legal motion is punished against the plain one by more than 0.1."""
    _, _, _, good = standard()
    by_skill = good.reshape(3, -1, len(video_scenes.SKILLS)).mean(1)
    assert (by_skill > 0.85).all() and (by_skill[1] > by_skill[1, 0] - 0.1).all()
    assert ((good >= 0) & (good <= 1)).all() and (good.min(1) > 0.6).all()


def test_a_frozen_clip_is_not_paid_for_motion():
    """The cheapest way to be smooth: the first frame repeated, clean or with an autoencoder's flicker."""
    prompts, _, media, good = standard()
    frozen = media[:, :1].expand_as(media).contiguous()
    vq, mq, ta = scores(frozen, prompts)
    assert mq.max() == 0 and (ta < good[2] - 0.4).all() and vq.mean() > good[0].mean() - 0.02
    assert MotionQuality().score(worn(frozen), prompts).max() < 0.05


def test_jitter_and_disorder_are_not_paid_for_motion():
    """±3 px of jitter, on top of the motion or instead of it, and frames in random order."""
    prompts, clips, media, good = standard()
    rng = np.random.default_rng(4)

    def shaken(clip, keep):
        movers = [
            dataclasses.replace(o, center_F2=(o.center_F2 if keep else o.center_F2[:1]) + rng.choice([-3, 3], (FRAMES, 2)))
            for o in clip.objects
        ]
        return dataclasses.replace(clip, objects=tuple(movers))

    shuffled = torch.stack([m[rng.permutation(FRAMES)] for m in media])
    for bad in (rendered([shaken(c, True) for c in clips]), rendered([shaken(c, False) for c in clips]), shuffled):
        _, mq, ta = scores(bad, prompts)
        assert mq.mean() < 0.1 and (mq < good[1] - 0.4).all() and ta.mean() < good[2].mean() - 0.2
    vq, _, ta = scores(shuffled, prompts)
    assert np.allclose(vq, good[0], atol=1e-5) and ta.mean() < good[2].mean() - 0.4


def test_reversed_and_exchanged_clips_lose_alignment_only():
    prompts, _, media, good = standard()
    vq, mq, ta = scores(media.flip(1), prompts)
    assert np.allclose(vq, good[0], atol=1e-5) and np.allclose(mq, good[1], atol=0.01)
    returns = np.array([p.spec["skill"] == "bouncing" for p in prompts])
    assert (ta[~returns] < good[2][~returns] - 0.4).all() and np.allclose(ta[returns], good[2][returns], atol=0.05)
    vq, mq, ta = scores(media.roll(5, 0), prompts)
    assert np.allclose(vq, good[0].take(np.arange(-5, 51)), atol=1e-5) and np.allclose(
        mq, good[1].take(np.arange(-5, 51)), atol=1e-5
    )
    assert ta.mean() < 0.1 and (ta < good[2] - 0.4).all()
    _, changed = drawn(56, seed=2, change=True)
    vq, mq, ta = scores(rendered(changed), prompts)
    assert abs(vq.mean() - good[0].mean()) < 0.03 and abs(mq.mean() - good[1].mean()) < 0.05
    assert (ta < good[2].min()).all() and ta.mean() < good[2].mean() - 0.4


def test_changing_into_something_else_costs_motion_quality():
    """An object that turns from one shape or colour into another half-way, or blinks."""
    prompts, _ = drawn(7)
    rng = np.random.default_rng(1)
    spec = {"skill": "direction", "objects": [{"shape": "circle", "color": "red", "motion": motion("move", "right")}]}
    clip = video_scenes.draw_clip(spec, rng)
    (mover,) = clip.objects
    whole = rendered([clip])
    empty = rendered([dataclasses.replace(clip, objects=())])
    blink = whole.clone()
    blink[:, 1::2] = empty[:, 1::2]
    cases = [whole, blink]
    for other in (dataclasses.replace(mover, shape="square"), dataclasses.replace(mover, rgb=video_scenes.COLORS["blue"])):
        cases.append(torch.cat([whole[:, :4], rendered([dataclasses.replace(clip, objects=(other,))])[:, 4:]], dim=1))
    mq = [float(MotionQuality().score(case, prompts[:1])) for case in cases]
    assert mq[0] > 0.85 and max(mq[1:]) < 0.4, mq


def test_visual_quality_falls_with_blur_and_noise():
    prompts, _, media, good = standard()
    generator = torch.Generator().manual_seed(1)
    blurred = functional.avg_pool2d(media.flatten(0, 1), 3, 1, 1, count_include_pad=False).view_as(media)
    noise = torch.randn(media.shape, generator=generator)
    for case in (blurred, (media + 0.02 * noise).clamp(0, 1), worn(media)):
        vq, mq, _ = scores(case, prompts)
        assert (vq < good[0] - 0.15).all() and mq.mean() > good[1].mean() - 0.1
    assert VisualQuality().score((media + 0.04 * noise).clamp(0, 1), prompts).mean() < 0.3


@pytest.mark.parametrize("reward", REWARDS, ids=lambda r: r.name)
def test_rewards_refuse_other_shapes(reward):
    with pytest.raises(ValueError, match=f"{reward.name} takes clips .*got \\(1, 4, 3, 64, 64\\)"):
        reward.score(torch.zeros(1, 4, 3, SIZE, SIZE), video_scenes.prompts("test", 1))
    with pytest.raises(ValueError, match=r"reads clips \(9, 3, 64, 64\)"):
        video_verifier.read(np.zeros((8, 3, SIZE, SIZE), np.float32))


def test_only_alignment_needs_a_spec():
    prompts, _, media, good = standard()
    bare = dataclasses.replace(prompts[0], spec=None)
    assert (
        VisualQuality().score(media[:1], [bare]).item() == good[0][0]
        and MotionQuality().score(media[:1], [bare]).item() == good[1][0]
    )
    with pytest.raises(ValueError, match="has no spec; needed is"):
        TextAlignment().score(media[:1], [bare])
