"""Variants of methods make configs that differ as they say; corrupted rewards corrupt as they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from baselines import find_method
from otca.errors import InputError
from otca.rewards.base import build_reward
from otca.tasks.scenes import random_examples
from otca.types import Prompt
from reproduce import ablations
from reproduce import all as all_runs
from reproduce.runner import arm_config
from reproduce.table import Table
from reproduce.variants import STRESSED, VARIANTS, named_arm


def scored(name, media_BFCHW, prompts):
    return build_reward(name).score(media_BFCHW, prompts)


@pytest.fixture(scope="module")
def media():
    """60 drawings of their specs, a few spoiled a little so that rewards vary."""
    images, _, scenes = random_examples("test", 60, np.random.default_rng(0))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    strength = torch.linspace(0, 0.05, 60).view(-1, 1, 1, 1)
    media_BCHW = (torch.from_numpy(images) + strength * noise).clamp(0, 1)
    return media_BCHW.unsqueeze(1), [Prompt(str(i), "", scene.spec) for i, scene in enumerate(scenes)]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_config_of_its_own(name):
    plain, varied = (arm_config(named_arm("image", "quick", n, 0)) for n in (name.partition("@")[0], name))
    assert varied != plain and find_method(varied.method).name == plain.method
    assert str(named_arm("image", "quick", name, 0).path) == f"image/quick/{name}/seed0"


def test_unknown_variants_are_refused():
    with pytest.raises(InputError, match="unknown variant 'otca_tcd@permutted' .*otca_tcd@permuted"):
        named_arm("image", "quick", "otca_tcd@permutted", 0)


def test_families_share_the_baseline_and_name_known_arms():
    for table in ablations.FAMILIES.values():
        assert table.methods[:2] == ("base", "static_multi_reward") and len(set(table.methods)) == len(table.methods)
        arms = table.arms("quick")
        assert len(set(arms)) == len(arms) == 2 * len(table.methods)
    assert {m.partition("@")[0] for m in ablations.FAMILIES["stress"].methods} == {"base", *STRESSED}


def test_all_families_are_those_of_the_tier(monkeypatch, tmp_path, capsys):
    """Those that `reproduce.all` makes, and at the tier of longer runs the one that is published there."""
    asked = []
    monkeypatch.setattr(Table, "render", lambda self, tier: asked.append((self.name, tier)) or tmp_path)
    (tmp_path / "table.md").write_text("")
    for tier in ("quick", "cpu", "study"):
        assert ablations.main(["--tier", tier, "--render"]) == 0
    rest = [f"ablations/{name}" for name in ablations.FAMILIES if name != "targets"]
    assert asked == [*((name, tier) for tier in ("quick", "cpu") for name in rest), ("ablations/targets", "study")]
    assert [table.name for table in all_runs.TABLES[4:]] == rest
    assert ablations.main(["--tier", "cpu", "--family", "tcd", "--render"]) == 0 and asked[-1] == ("ablations/tcd", "cpu")


def test_a_family_that_is_not_published_at_a_tier_says_how_its_runs_are_made(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert ablations.main(["--tier", "cpu", "--family", "targets", "--render"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ablations/targets: error: no run in results/image/cpu/base/seed0; make it with `python -m ")
    assert "reproduce.method base --modality image --tier cpu`" in said and said.count("\n") == 1


def test_noise_is_uniform_and_the_image_s_own(media):
    media_BFCHW, prompts = media
    noise_B = scored("reproduce.corrupted:NoiseAesthetic", media_BFCHW, prompts)
    assert torch.equal(noise_B, scored("reproduce.corrupted:NoiseAesthetic", media_BFCHW.flip(0), prompts).flip(0))
    assert 0.35 < noise_B.mean() < 0.65 and 0.2 < noise_B.std() < 0.4
    assert abs(np.corrcoef(noise_B, scored("aesthetic", media_BFCHW, prompts))[0, 1]) < 0.35


def test_flipping_turns_a_third_round(media):
    media_BFCHW, prompts = media
    honest_B, flipped_B = (scored(n, media_BFCHW, prompts) for n in ("alignment", "reproduce.corrupted:FlippedAlignment"))
    turned_B = flipped_B != honest_B
    assert 0.15 < turned_B.float().mean() < 0.5
    torch.testing.assert_close(flipped_B[turned_B], 1 - honest_B[turned_B])


def test_scaled_and_constant_keep_the_order(media):
    media_BFCHW, prompts = media
    aesthetic_B, quality_B = (scored(name, media_BFCHW, prompts) for name in ("aesthetic", "quality"))
    torch.testing.assert_close(scored("reproduce.corrupted:ScaledAesthetic", media_BFCHW, prompts), 100 * aesthetic_B)
    constant_B = scored("reproduce.corrupted:ConstantQuality", media_BFCHW, prompts)
    assert (constant_B.max() - constant_B.min()) <= 1e-3 and quality_B.std() > 0.01
    assert np.corrcoef(constant_B, quality_B)[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["Noise", "Flipped", "Scaled", "Constant"])
def test_corrupted_rewards_keep_the_name(kind):
    name = {"Noise": "aesthetic", "Flipped": "alignment", "Scaled": "aesthetic", "Constant": "quality"}[kind]
    assert build_reward(f"reproduce.corrupted:{kind}{name.capitalize()}").name == name
