"""The held-out judge: right on renders and reconstructions, never fooled by emptiness, independent of the verifier."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

import otca.tasks.judge as judge_module
from otca.files import EMBEDDED
from otca.tasks.judge import Detection, HeldOutJudge, fulfils
from otca.tasks.rendering import render
from otca.tasks.scenes import COLORS, SKILLS, all_specs, draw_scene, prompts
from otca.tasks.video_judge import Track, VideoJudge, motion_accuracy
from otca.tasks.video_scenes import FRAMES, path
from otca.types import Prompt
from reproduce.judged import TASKS
from reproduce.pretrain.drawings import FAULTS, draw_thing, random_background, random_spec_scene

CHECKPOINTS = EMBEDDED


@pytest.fixture(scope="module")
def judge() -> HeldOutJudge:
    return HeldOutJudge.from_pretrained(CHECKPOINTS / "judge")


def rendered(scenes) -> tuple[torch.Tensor, list[Prompt]]:
    media = torch.from_numpy(np.stack([render(scene) for scene in scenes]))[:, None]
    return media, [Prompt(id=str(i), text="", spec=scene.spec) for i, scene in enumerate(scenes)]


def test_centres_are_exact_to_a_pixel(judge):
    scenes = [random_spec_scene(np.random.default_rng(i)) for i in range(60)]
    media, _ = rendered(scenes)
    for scene, found in zip(scenes, judge.detect(media)):
        for thing in scene.objects:
            assert min(abs(thing.x - d.x) + abs(thing.y - d.y) for d in found) < 1.5


def test_emptiness_never_passes(judge):
    generator = torch.Generator().manual_seed(0)
    greys = torch.linspace(0, 1, 9).view(-1, 1, 1, 1, 1).expand(-1, 1, 3, 64, 64)
    tints = torch.tensor([*COLORS.values()]).view(-1, 1, 3, 1, 1).expand(-1, 1, 3, 64, 64)
    uniform = torch.rand(32, 1, 3, 64, 64, generator=generator)
    normal = (0.5 + 0.3 * torch.randn(32, 1, 3, 64, 64, generator=generator)).clamp(0, 1)
    for media in (greys, tints, uniform, normal):
        assert judge.detect(media) == [[]] * len(media)
        for skill in SKILLS:
            prompt = Prompt(id="p", text="", spec=all_specs(skill)[0])
            assert not judge.verdict(media, [prompt] * len(media)).any()


def test_faded_and_doubly_exposed_drawings_fail(judge):
    rng = np.random.default_rng(3)
    media, wanted = rendered([random_spec_scene(rng) for _ in range(120)])
    assert judge.verdict(0.6 + 0.4 * media, wanted).float().mean() <= 0.02
    assert judge.verdict((media + media.roll(1, 0)) / 2, wanted).float().mean() <= 0.02


def test_an_object_too_many_fails(judge):
    rng = np.random.default_rng(4)
    pairs = [draw_scene(spec, rng) for spec in all_specs("color_attr")[::9]]
    media, _ = rendered(pairs)
    alone = [{"skill": "colors", "objects": scene.spec["objects"][:1], "relation": None, "place": None} for scene in pairs]
    assert not judge.verdict(media, [Prompt(id="p", text="", spec=spec) for spec in alone]).any()


def test_fulfils_wants_each_object_once_with_its_colour_and_relation():
    def thing(shape, color, x, y, confidence=0.9):
        return Detection(shape=shape, color=color, x=x, y=y, confidence=confidence)

    circle, cross = {"shape": "circle", "color": None}, {"shape": "cross", "color": "red"}
    spec = {"objects": [circle, cross], "relation": "left of", "place": None}
    left, right = thing("circle", "blue", 10, 30), thing("cross", "red", 50, 34)
    assert fulfils([left, right], spec) and fulfils([right, left], spec)
    assert not fulfils([left], spec) and not fulfils([left, right, right], spec)
    assert not fulfils([left, thing("cross", "green", 50, 34)], spec)
    assert not fulfils([left, thing("cross", "red", 50, 69)], spec)  # a diagonal: the margin is missed by a pixel
    assert not fulfils([thing("circle", "blue", 60, 30), right], spec)
    assert not fulfils([left, thing("cross", "red", 50, 34, confidence=0.4)], spec)
    assert not fulfils([thing("circle", "other", 10, 30), right], spec)
    assert fulfils([left, thing("cross", "red", 14, 60)], spec | {"relation": "above"})


def test_verdict_does_not_depend_on_the_batch(judge):
    rng = np.random.default_rng(6)
    media, wanted = rendered([random_spec_scene(rng) for _ in range(70)])
    together = judge.verdict(media, wanted)
    alone = torch.cat([judge.verdict(m[None], [p]) for m, p in zip(media, wanted)])
    assert torch.equal(together, alone) and together.dtype == torch.bool and together.shape == (70,)


def test_wrong_media_are_refused(judge):
    prompt = prompts("test", 1)
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 64, 64\)"):
        judge.verdict(torch.zeros(1, 2, 3, 64, 64), prompt)
    with pytest.raises(ValueError, match="NaN"):
        judge.verdict(torch.full((1, 1, 3, 64, 64), float("nan")), prompt)
    with pytest.raises(ValueError, match="2 media but 1 prompts"):
        judge.verdict(torch.zeros(2, 1, 3, 64, 64), prompt)


def test_saves_and_loads(judge, tmp_path):
    judge.save_pretrained(tmp_path)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for one, other in zip(judge(image), HeldOutJudge.from_pretrained(tmp_path)(image)):
        assert torch.equal(one, other)
    assert sum(p.numel() for p in judge.parameters()) <= 150_000
    assert (tmp_path / "model.safetensors").stat().st_size <= 600_000


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(judge, tmp_path, name):
    judge.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / name} not found; train it with"):
        HeldOutJudge.from_pretrained(tmp_path)


def test_shares_no_code_with_the_training_verifier():
    tree = ast.parse(Path(judge_module.__file__).read_text())
    imported = {
        f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert not [name for name in imported if "verifier" in name or "rewards" in name]


def test_every_kind_of_malformed_object_is_refused(judge):
    rng = np.random.default_rng(8)
    for fault in FAULTS:
        images = [draw_thing(random_background(rng), 32.0, 32.0, rng.uniform(7, 11), fault, 0.5, rng)[0] for _ in range(60)]
        found = judge.detect(torch.from_numpy(np.stack(images))[:, None])
        passed = np.mean([len(things) == 1 and things[0].valid for things in found])
        assert passed <= 0.15, f"{fault}: {passed:.2f} pass as one valid object"


# --------------------------------------------------------------------------------------------------------------- clips


@pytest.fixture(scope="module")
def video_judge() -> VideoJudge:
    return VideoJudge.from_pretrained(CHECKPOINTS / "video_judge")


def track(course, speed=4.0, start=(32.0, 32.0), shape="circle", color="red", confidence=0.9, frames=range(FRAMES)) -> Track:
    places = np.array(start) + speed * path(course)
    return Track(tuple(frames), tuple(Detection(shape, color, *places[f].tolist(), confidence) for f in frames))


def wanted(course=None, speed=None, shape="circle", color="red") -> dict:
    return {"shape": shape, "color": color, "course": course, "speed": speed}


def test_a_clip_fulfils_courses_speeds_and_relations():
    def yes(found, *objects, relation=None):
        return VideoJudge.fulfils(found, {"objects": list(objects), "relation": relation})

    left, turn = ["left", "left"], ["left", "up"]
    assert yes([track(left)], wanted(left)) and yes([track(left)], wanted(left, "fast")) and yes([track(left)], wanted())
    assert not yes([track(left)], wanted(turn)) and not yes([track(left)], wanted(["right", "right"]))
    assert not yes([track(left)], wanted(left, "slow")) and yes([track(left, 2.0)], wanted(left, "slow"))
    assert yes([track(turn)], wanted(turn)) and yes([track(["left", "right"])], wanted(["left", "right"]))
    assert not yes([track(left, 0.3)], wanted()) and not yes([track(left), track(left)], wanted(left))
    assert not yes([track(left, confidence=0.4)], wanted(left)) and not yes([track(left, frames=range(6))], wanted(left))
    ahead = track(left, 2.0, (20.0, 32.0), "cross")
    pair, both = [track(left, 2.0), ahead], (wanted(), wanted(shape="cross"))
    assert yes(pair, *both, relation="following") and not yes(pair, *both[::-1], relation="following")
    assert not yes(pair, *both, relation="meeting")
    apart = [track(["right", "right"], 2.0), ahead]
    assert yes(apart, *both, relation="parting") and yes(apart, *both[::-1], relation="parting")


def test_direction_and_speed_are_right_by_object():
    spec = {"objects": [wanted(["left", "left"]), wanted(["up", "up"], shape="cross")], "relation": None}
    half = motion_accuracy([track(["left", "left"]), track(["down", "down"], shape="cross")], spec)
    assert half["direction"] == 0.5 and np.isnan(half["speed"])
    assert motion_accuracy([track(["left", "left"])], spec)["direction"] == 0.5
    slow = {"objects": [wanted(speed="slow")], "relation": None}
    assert motion_accuracy([track(["up", "up"], 2.0)], slow)["speed"] == 1 and motion_accuracy([], slow)["speed"] == 0


def test_a_still_or_flickering_clip_is_refused(video_judge):
    task, rng = TASKS["video"], np.random.default_rng(5)
    wanted = task.grammar.prompts("test", 24)
    media = torch.from_numpy(np.stack([task.render(task.draw(p.spec, rng)) for p in wanted]))
    assert video_judge.verdict(media, wanted).float().mean() > 0.95
    assert not video_judge.verdict(media[:, :1].expand_as(media), wanted).any()
    flicker = media.clone()
    flicker[:, 1::2] = media.roll(1, 0)[:, 1::2]
    assert video_judge.verdict(flicker, wanted).float().mean() < 0.05
