"""The embedded tasks: grammar, splits, renderer, verifiers, rewards, shipped checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from otca.config import PolicyConfig
from otca.files import EMBEDDED, sha256
from otca.models.base import build_policy
from otca.rewards.base import build_reward
from otca.tasks import architecture, rendering, scenes, video_scenes
from otca.tasks.video_scenes import DIRECTIONS, FRAMES, HALF
from otca.types import Prompt
from reproduce.judged import TASKS, drawings

MODALITIES = pytest.mark.parametrize("modality", TASKS)
REWARDS = {"image": ("alignment", "quality", "aesthetic"), "video": ("ta", "vq", "mq")}
"""Text first, finish second, style or manner third."""
SENTENCE = {"image": architecture.MAX_SEQUENCE_LENGTH, "video": architecture.VIDEO_SEQUENCE_LENGTH}


@pytest.fixture(scope="module", params=TASKS)
def drawn(request):
    """(modality, prompts, drawings, media) of fresh drawings off the lattice that satisfy their prompts."""
    task, rng = TASKS[request.param], np.random.default_rng([0, 9])
    prompts = task.grammar.prompts("test", {"image": 240, "video": 96}[request.param])
    made = [task.draw(p.spec, rng) for p in prompts]
    return request.param, prompts, made, torch.from_numpy(np.stack([task.render(one) for one in made]))


@MODALITIES
def test_splits_share_no_spec_and_each_skill_holds_out_twelve(modality):
    grammar, keys = TASKS[modality].grammar, {}
    for split in ("train", "validation", "test"):
        specs = grammar.split_specs(split)
        assert set(specs) == set(grammar.SKILLS) and all(specs.values())
        keys[split] = {json.dumps(s, sort_keys=True) for group in specs.values() for s in group}
    assert min(map(len, grammar.split_specs("test").values())) >= 12
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"] and not keys["validation"] & keys["test"]
    assert sum(map(len, keys.values())) == sum(len(grammar.all_specs(s)) for s in grammar.SKILLS)


@MODALITIES
def test_no_caption_belongs_to_two_specs_of_a_skill_and_all_fit_the_text_length(modality):
    grammar = TASKS[modality].grammar
    for skill in grammar.SKILLS:
        owner = {}
        for spec in grammar.all_specs(skill):
            for text in grammar.captions(spec):
                assert owner.setdefault(text, spec) == spec, text
                assert len(text.split()) < SENTENCE[modality]


@MODALITIES
def test_prompt_lists_are_prefixes_and_balanced(modality):
    grammar = TASKS[modality].grammar
    longer, shorter = grammar.prompts("test", 120), grammar.prompts("test", 60)
    assert longer[:60] == shorter
    assert [p.spec["skill"] for p in longer[:6]] == list(grammar.SKILLS)


def test_renderer_is_anti_aliased_and_covers_the_stated_area():
    """A circle's darkened area equals πr² to 1 %, which hard edges would miss."""
    scene = scenes.draw_scene(scenes.all_specs("single_object")[0], np.random.default_rng(0))
    circle = scenes.SceneObject("circle", "red", 30.3, 33.8, 12.4, (0.0, 0.0, 0.0))
    with_it, without = (rendering.render(replace(scene, objects=objects, finish=1.0)) for objects in ((circle,), ()))
    assert abs(((without - with_it) / without)[0].sum() / (np.pi * 12.4**2) - 1) < 0.01


@pytest.mark.parametrize("lattice", [False, True])
def test_scenes_obey_relation_and_place(lattice):
    rng = np.random.default_rng(0)
    for spec in scenes.all_specs("position"):
        first, second = scenes.draw_scene(spec, rng, lattice).objects
        dx, dy = second.x - first.x, second.y - first.y
        assert (dx > abs(dy)) if spec["relation"] == "left of" else (dy > abs(dx))
    for spec in scenes.all_specs("single_object"):
        (only,) = scenes.draw_scene(spec, rng, lattice).objects
        assert scenes.in_place(spec["place"], only.x, only.y, margin=3.9)


@pytest.mark.parametrize("lattice", [False, True])
def test_clips_obey_courses_speeds_and_relations(lattice):
    rng = np.random.default_rng(0)
    for skill in video_scenes.SKILLS:
        for spec in video_scenes.all_specs(skill)[::5]:
            clip = video_scenes.draw_clip(spec, rng, lattice)
            assert clip.center_NF2.min() > 7 and clip.center_NF2.max() < scenes.SIZE - 7
            for wanted, center_F2 in zip(spec["objects"], clip.center_NF2):
                for course, moved in zip(wanted["course"] or (), np.diff(center_F2[::HALF], axis=0)):
                    assert moved @ DIRECTIONS[course] == pytest.approx(np.hypot(*moved)) and np.hypot(*moved) > 4
                if wanted["speed"]:
                    pixels = np.hypot(*(center_F2[-1] - center_F2[0])) / (FRAMES - 1)
                    assert (pixels > video_scenes.SPEED_BOUNDARY) == (wanted["speed"] == "fast")
            if spec["relation"]:
                way_F2 = clip.center_NF2[1] - clip.center_NF2[0]
                steps = [center_F2[-1] - center_F2[0] for center_F2 in clip.center_NF2]
                for step, sign in zip(steps, video_scenes.RELATIONS[spec["relation"]]):
                    assert sign * step @ way_F2.mean(0) > 0


@MODALITIES
def test_both_judges_are_right_on_renders_off_the_lattice(modality):
    """≥ 98 % on renders of any finish, and on as many with one attribute changed."""
    task = TASKS[modality]
    judge = task.judge.from_pretrained(EMBEDDED / {"image": "judge", "video": "video_judge"}[modality])
    for what, media, prompts, right in drawings(task, {"image": 600, "video": 60}[modality], None, lattice=False):
        for verdicts in (task.verdicts(media, prompts), judge.verdict(media, prompts).numpy()):
            assert (verdicts == right).mean() >= 0.98, what


@MODALITIES
def test_both_judges_are_right_on_reconstructions(modality):
    """≥ 99 % of drawings on the lattice, ≥ 97 % of them through the shipped autoencoder."""
    task, vae = TASKS[modality], build_policy(PolicyConfig(path=f"embedded:{modality}")).pipeline.vae
    judge = task.judge.from_pretrained(EMBEDDED / {"image": "judge", "video": "video_judge"}[modality])
    for what, media, prompts, right in drawings(task, {"image": 360, "video": 60}[modality], vae):
        least = 0.99 if what.startswith("renders") else 0.97
        for verdicts in (task.verdicts(media, prompts), judge.verdict(media, prompts).numpy()):
            assert (verdicts == right).mean() >= least, what


def junk(frames: int, count: int) -> dict[str, torch.Tensor]:
    """Media that show nothing; of clips, also a drawing that stands still."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, frames, 3, scenes.SIZE, scenes.SIZE)
    palette = torch.tensor(list(scenes.COLORS.values()))
    still = rendering.render(replace(scenes.draw_scene(scenes.all_specs("colors")[0], np.random.default_rng(0)), finish=1.0))
    return {
        "white": torch.ones(shape),
        "black": torch.zeros(shape),
        "palette": palette[torch.arange(count) % 4][:, None, :, None, None].expand(shape).contiguous(),
        "uniform noise": torch.rand(shape, generator=generator),
        "gaussian noise": (torch.randn(shape, generator=generator) * 0.3 + 0.5).clamp(0, 1),
    } | ({"still": torch.from_numpy(still).expand(shape).contiguous()} if frames > 1 else {})


@MODALITIES
def test_showing_nothing_scores_worst_on_every_objective(modality):
    count, frames = {"image": (60, 1), "video": (12, FRAMES)}[modality]
    prompts = TASKS[modality].grammar.prompts("test", count)
    for kind, media in junk(frames, count).items():
        for name in REWARDS[modality]:
            assert build_reward(name).score(media, prompts).max() < 0.05, (kind, name)


def test_each_reward_sees_its_own_objective(drawn):
    """The first sees the spec alone; the others follow finish and style (of clips, steadiness) whatever is drawn."""
    modality, prompts, made, media = drawn
    task, rng, count = TASKS[modality], np.random.default_rng(1), len(made)
    changed = [task.grammar.change_one_attribute(one, rng) for one in made]
    finish, style = (
        torch.tensor([getattr(one, name) for one in made])
        for name in ("finish", {"image": "style", "video": "steadiness"}[modality])
    )
    rewards = [build_reward(name) for name in REWARDS[modality]]
    text, *others = (reward.score(media, prompts) for reward in rewards)
    wrong = rewards[0].score(torch.from_numpy(np.stack([task.render(one) for one in changed])), prompts)
    assert text.mean() > wrong.mean() + 0.3
    text = torch.where(torch.arange(count) % 2 == 0, text, wrong)
    correlation = torch.corrcoef(torch.stack([text, *others, finish, style]))
    assert correlation[1, 3] > 0.9 and correlation[2, 4] > 0.9
    assert correlation[:3, :3].triu(1).abs().max() < 0.25  # no factor that they share


@MODALITIES
def test_quality_is_full_where_the_autoencoder_draws_a_crisp_finish(modality):
    """So it does not go on pulling by what can be drawn sharper still; a soft finish stays far below."""
    task, rng = TASKS[modality], np.random.default_rng([0, 9])
    vae = build_policy(PolicyConfig(path=f"embedded:{modality}")).pipeline.vae
    made = [task.draw(p.spec, rng, lattice=True) for p in task.grammar.prompts("test", 32)]
    quality = {}
    for finish in (0.5, 1.0):
        code = torch.from_numpy(np.stack([task.code(replace(one, finish=finish)) for one in made]))
        with torch.no_grad():
            media = (vae.decode(code).sample / 2 + 0.5).clamp(0, 1)
        media = media[:, None] if media.ndim == 4 else media.transpose(1, 2)
        quality[finish] = build_reward(REWARDS[modality][1]).score(media, [])
    assert quality[1.0].mean() > 0.95 and quality[0.5].mean() < 0.75


def test_a_clip_in_disorder_loses_motion_quality_and_one_in_reverse_loses_alignment():
    rng, task = np.random.default_rng(2), TASKS["video"]
    prompts = [p for p in task.grammar.prompts("test", 36) if p.spec["skill"] not in ("bouncing", "speed")]
    clips = [replace(task.draw(p.spec, rng), steadiness=1.0) for p in prompts]
    media = torch.from_numpy(np.stack([task.render(clip) for clip in clips]))
    shuffled = torch.stack([one[rng.permutation(FRAMES)] for one in media])
    ta, mq, vq = (build_reward(name) for name in ("ta", "mq", "vq"))
    assert (mq.score(shuffled, prompts) < mq.score(media, prompts) - 0.3).float().mean() > 0.9
    assert torch.allclose(mq.score(media.flip(1), prompts), mq.score(media, prompts), atol=0.02)
    assert torch.allclose(vq.score(media.flip(1), prompts), vq.score(media, prompts), atol=1e-5)
    assert (ta.score(media.flip(1), prompts) < ta.score(media, prompts) - 0.3).all()


def test_changing_into_something_else_costs_motion_quality():
    """An object that turns from one colour into another half-way, or blinks."""
    spec = video_scenes.all_specs("direction")[4]
    clip = replace(video_scenes.draw_clip(spec, np.random.default_rng(3)), steadiness=1.0, finish=1.0)
    other = replace(clip, objects=(replace(clip.objects[0], color="blue", rgb=scenes.COLORS["blue"]),))
    whole, blue, empty = (
        video_scenes.render_clip(c) for c in (clip, other, replace(clip, objects=(), center_NF2=clip.center_NF2[:0]))
    )
    odd = (np.arange(FRAMES) % 2 == 1)[:, None, None, None]
    cases = torch.from_numpy(np.stack([whole, np.concatenate([whole[:4], blue[4:]]), np.where(odd, empty, whole)]))
    steady, recoloured, blinking = build_reward("mq").score(cases, [Prompt("p", "", spec)] * 3).tolist()
    assert steady > 0.85 and recoloured < steady - 0.2 and blinking < steady - 0.2


@MODALITIES
def test_rewards_refuse_other_sizes(modality):
    for name in REWARDS[modality]:
        with pytest.raises(ValueError, match=f"{name} takes media"):
            build_reward(name).score(torch.zeros(1, 2, 3, 32, 32), TASKS[modality].grammar.prompts("test", 1))


def test_shipped_files_match_their_hashes_and_are_small():
    """SHA-256 of every shipped file is on record; each folder loads by safetensors alone; each pipeline is ≤ 8 MB."""
    for folder in ("image", "judge", "clip", "video", "video_judge"):
        listing = json.loads((EMBEDDED / folder / "sha256.json").read_text())
        files = {p.relative_to(EMBEDDED / folder).as_posix() for p in (EMBEDDED / folder).rglob("*") if p.is_file()}
        assert files == {*listing, "sha256.json"}
        assert all(sha256(EMBEDDED / folder / name) == digest for name, digest in listing.items())
        assert not [f for f in files if Path(f).suffix in (".bin", ".pt", ".pkl", ".ckpt")]
    for modality in ("image", "video"):
        assert sum(p.stat().st_size for p in (EMBEDDED / modality).rglob("*.safetensors")) <= 8e6
