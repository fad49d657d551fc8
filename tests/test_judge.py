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
from otca.tasks.scenes import COLORS, SKILLS, all_specs, draw_scene, prompts, render
from otca.types import Prompt
from reproduce.pretrain.drawings import FAULTS, draw_thing, random_background, random_spec_scene
from reproduce.pretrain.judge import judge_accuracy

CHECKPOINTS = EMBEDDED


@pytest.fixture(scope="module")
def judge() -> HeldOutJudge:
    return HeldOutJudge.from_pretrained(CHECKPOINTS / "judge")


@pytest.fixture(scope="module")
def vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(CHECKPOINTS / "image" / "vae").eval()


def rendered(scenes) -> tuple[torch.Tensor, list[Prompt]]:
    media = torch.from_numpy(np.stack([render(scene) for scene in scenes]))[:, None]
    return media, [Prompt(id=str(i), text="", spec=scene.spec) for i, scene in enumerate(scenes)]


@pytest.mark.parametrize("kind", ["clean", "changed"])
def test_right_on_renders(judge, kind):
    accuracy = judge_accuracy(judge, 600, kind, seed=1)
    assert accuracy["overall"] >= 0.99
    assert min(accuracy[skill] for skill in SKILLS) >= 0.97


@pytest.mark.parametrize("kind", ["reconstruction", "changed_reconstruction"])
def test_right_on_reconstructions(judge, vae, kind):
    accuracy = judge_accuracy(judge, 360, kind, vae, seed=1)
    assert accuracy["overall"] >= 0.97
    assert min(accuracy[skill] for skill in SKILLS) >= 0.93


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
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
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
    ours = {name for name in imported if name.startswith("otca")}
    assert ours == {f"otca.tasks.scenes.{name}" for name in ("COLORS", "SHAPES", "SIZE")} | {"otca.types.Prompt"}


def test_every_kind_of_malformed_object_is_refused(judge):
    rng = np.random.default_rng(8)
    for fault in FAULTS:
        images = [draw_thing(random_background(rng), 32.0, 32.0, rng.uniform(7, 11), fault, 0.5, rng)[0] for _ in range(60)]
        found = judge.detect(torch.from_numpy(np.stack(images))[:, None])
        passed = np.mean([len(things) == 1 and things[0].valid for things in found])
        assert passed <= 0.15, f"{fault}: {passed:.2f} pass as one valid object"
