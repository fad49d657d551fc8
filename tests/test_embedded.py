"""The embedded image task: grammar, splits, renderer, verifier, rewards, shipped checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from otca.files import EMBEDDED, sha256
from otca.tasks import scenes, verifier
from otca.tasks.rewards import Aesthetic, Alignment, Quality

REWARDS = (Alignment(), Quality(), Aesthetic())


def drawn(count, seed=0, change=False):
    """(prompts, images) of fresh scenes that satisfy their prompts, or break them in one attribute."""
    rng = np.random.default_rng([seed, 9])
    prompts = scenes.prompts("test", count, seed)
    made = [scenes.draw_scene(p.spec, rng) for p in prompts]
    if change:
        made = [scenes.change_one_attribute(scene, rng) for scene in made]
    return prompts, torch.from_numpy(np.stack([scenes.render(scene) for scene in made])).unsqueeze(1)


def test_splits_share_no_scene_and_hold_every_skill():
    keys = {}
    for split in ("train", "validation", "test"):
        specs = scenes.split_specs(split)
        assert set(specs) == set(scenes.SKILLS) and all(specs.values())
        keys[split] = {json.dumps(s, sort_keys=True) for group in specs.values() for s in group}
    assert not keys["train"] & keys["test"] and not keys["train"] & keys["validation"] and not keys["validation"] & keys["test"]
    assert sum(map(len, keys.values())) == sum(len(scenes.all_specs(s)) for s in scenes.SKILLS)


def test_captions_vary_and_never_name_another_scene():
    """Every spec has at least eight wordings, and no wording belongs to two specs."""
    owner = {}
    for skill in scenes.SKILLS:
        for spec in scenes.all_specs(skill):
            wordings = scenes.captions(spec)
            assert len(set(wordings)) == len(wordings) >= 8
            for text in wordings:
                assert owner.setdefault(text, spec) == spec, text
                assert len(text.split()) < 16


def test_prompt_lists_are_prefixes_and_balanced():
    longer, shorter = scenes.prompts("test", 120), scenes.prompts("test", 60)
    assert longer[:60] == shorter
    assert [p.spec["skill"] for p in longer[:6]] == list(scenes.SKILLS)
    assert len({p.text for p in scenes.prompts("train", 1200)}) > 700


def test_renderer_is_anti_aliased_and_covers_the_stated_area():
    """A circle's darkened area equals πr² to 1 %, which hard edges would miss."""
    spec = {"skill": "colors", "objects": [{"shape": "circle", "color": "black"}], "relation": None}
    circle = scenes.SceneObject("circle", "black", 30.3, 33.8, 12.4, (0.0, 0.0, 0.0))
    image = scenes.render(scenes.Scene(spec, (circle,), ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))))
    assert abs((1 - image[0]).sum() / (np.pi * 12.4**2) - 1) < 0.01
    assert ((image > 0.05) & (image < 0.95)).any()


def test_scenes_obey_their_relation():
    rng = np.random.default_rng(0)
    for spec in scenes.all_specs("position"):
        first, second = scenes.draw_scene(spec, rng).objects
        dx, dy = second.x - first.x, second.y - first.y
        assert (dx > abs(dy)) if spec["relation"] == "left of" else (dy > abs(dx))


@pytest.mark.parametrize("change, floor", [(False, 0.99), (True, 0.99)])
def test_verifier_is_right_on_renders(change, floor):
    """≥ 99 % on clean renders, and on as many with one attribute changed."""
    prompts, media = drawn(600, change=change)
    verdicts = [verifier.satisfied(verifier.read(m[0].numpy()), p.spec) for m, p in zip(media, prompts)]
    assert np.mean([v != change for v in verdicts]) >= floor


@pytest.mark.parametrize("change", [False, True])
def test_verifier_is_right_on_reconstructions(change):
    """≥ 97 % through the shipped autoencoder."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(EMBEDDED / "image" / "vae").eval()
    prompts, media = drawn(360, seed=1, change=change)
    with torch.no_grad():
        latent = vae.encode(media[:, 0] * 2 - 1).latent_dist.mode()
        image = (vae.decode(latent).sample / 2 + 0.5).clamp(0, 1)
    verdicts = [verifier.satisfied(verifier.read(m.numpy()), p.spec) for m, p in zip(image, prompts)]
    assert np.mean([v != change for v in verdicts]) >= 0.97


def junk() -> dict[str, torch.Tensor]:
    """Images that show nothing, 60 of each."""
    generator = torch.Generator().manual_seed(0)
    shape = (60, 1, 3, 64, 64)
    low = torch.rand(60, 3, 8, 8, generator=generator)
    palette = torch.tensor(list(scenes.COLORS.values()))
    return {
        "white": torch.ones(shape),
        "black": torch.zeros(shape),
        "palette": palette[torch.arange(60) % 6][:, None, :, None, None].expand(shape).contiguous(),
        "uniform noise": torch.rand(shape, generator=generator),
        "gaussian noise": (torch.randn(shape, generator=generator) * 0.3 + 0.5).clamp(0, 1),
        "smooth noise": torch.nn.functional.interpolate(low, size=64, mode="bilinear").unsqueeze(1),
    }


@pytest.mark.parametrize("kind", list(junk()))
def test_showing_nothing_scores_worst_on_every_objective(kind):
    """DESIGN's rule: no blank, constant or noise image beats the worst good drawing, or gets more than a few per cent."""
    prompts, media = drawn(60)
    for reward in REWARDS:
        worthless, good = reward.score(junk()[kind], prompts), reward.score(media, prompts)
        assert worthless.mean() < 0.02 and worthless.max() < good.min(), reward.name


def test_rewards_rank_drawings_as_they_should():
    """A good image of another prompt keeps quality and style and loses alignment; blur and noise lose quality."""
    prompts, media = drawn(120)
    _, changed = drawn(120, change=True)
    other = media.roll(7, 0)
    alignment, quality, aesthetic = ([r.score(m, prompts).mean() for m in (media, changed, other)] for r in REWARDS)
    assert alignment[0] > alignment[1] + 0.3 > alignment[2] + 0.3
    assert abs(quality[0] - quality[2]) < 1e-6 and abs(aesthetic[0] - aesthetic[2]) < 1e-6
    blurred = torch.nn.functional.avg_pool2d(media[:, 0], 3, 1, 1, count_include_pad=False).unsqueeze(1)
    noisy = (media + 0.05 * torch.randn(media.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    assert Quality().score(blurred, prompts).mean() < quality[0] - 0.1 > Quality().score(noisy, prompts).mean()


def test_aesthetic_prefers_warm_and_full():
    rng = np.random.default_rng(3)
    spec = scenes.all_specs("single_object")[0]
    scene = scenes.draw_scene(spec, rng)

    def value(background, radius):
        obj = scenes.SceneObject("circle", "blue", 32, 32, radius, scenes.COLORS["blue"])
        image = scenes.render(scenes.Scene(scene.spec, (obj,), (background, background)))
        return float(Aesthetic().score(torch.from_numpy(image)[None, None], [scenes.prompts("test", 1)[0]]))

    warm, cool = (0.95, 0.9, 0.78), (0.78, 0.88, 0.95)
    assert value(warm, 12) > value(cool, 12) + 0.2
    assert value(warm, 18) > value(warm, 12) + 0.1


def test_rewards_refuse_other_sizes():
    with pytest.raises(ValueError, match="alignment takes images"):
        Alignment().score(torch.zeros(1, 1, 3, 32, 32), scenes.prompts("test", 1))


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
    assert sum(p.stat().st_size for p in EMBEDDED.rglob("*") if p.is_file()) <= 18e6
