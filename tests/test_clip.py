"""The embedded open_clip model: loads through the library, knows the scenes, and scores emptiness low."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otca.tasks.clip as clip_module
from otca.files import EMBEDDED
from otca.tasks.clip import EmbeddedClip
from otca.tasks.rendering import render
from otca.tasks.scenes import captions, change_one_attribute, prompts, vocabulary
from otca.types import Prompt
from reproduce.pretrain.clip import also_true, contrastive_loss, retrieval_accuracy, rival_spec
from reproduce.pretrain.drawings import random_spec_scene

CHECKPOINTS = EMBEDDED


@pytest.fixture(scope="module")
def clip() -> EmbeddedClip:
    return EmbeddedClip.from_pretrained(CHECKPOINTS / "clip")


@pytest.fixture(scope="module")
def drawn() -> tuple[torch.Tensor, list[Prompt], torch.Tensor]:
    """Renders (B, 1, 3, H, W), their prompts, and renders that break each prompt in one attribute."""
    rng = np.random.default_rng(2)
    scenes = [random_spec_scene(rng) for _ in range(240)]
    wanted = [Prompt(id="p", text=captions(scene.spec)[0], spec=scene.spec) for scene in scenes]
    right, wrong = (
        torch.from_numpy(np.stack([render(s) for s in drawings]))[:, None]
        for drawings in (scenes, [change_one_attribute(s, rng) for s in scenes])
    )
    return right, wanted, wrong


def test_captions_find_their_images(clip):
    accuracy = retrieval_accuracy(clip, 768, seed=1)
    assert accuracy["chance"] < 0.05
    assert accuracy["overall"] >= 0.95 and accuracy["position"] >= 0.8


def test_captions_find_reconstructions(clip):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(CHECKPOINTS / "image" / "vae").eval()
    assert retrieval_accuracy(clip, 512, vae, seed=1)["overall"] >= 0.88


def test_a_changed_attribute_lowers_the_score(clip, drawn):
    right, wanted, wrong = drawn
    assert (clip.score(right, wanted) > clip.score(wrong, wanted)).float().mean() >= 0.9


def test_emptiness_scores_low(clip, drawn):
    right, wanted, _ = drawn
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(right.shape, generator=generator)
    constant = torch.rand(len(right), 1, 3, 1, 1, generator=generator).expand_as(right)
    score = clip.score(right, wanted)
    for empty in (noise, constant, torch.ones_like(right)):
        assert (score > clip.score(empty, wanted)).float().mean() >= 0.98


def test_features_are_unit_vectors_and_score_is_their_cosine(clip, drawn):
    right, wanted, _ = drawn
    image, text = clip.image_features(right), clip.text_features([p.text for p in wanted])
    for features in (image, text):
        assert features.shape == (len(right), 64) and features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(right)))
    torch.testing.assert_close(clip.score(right, wanted), torch.nn.functional.cosine_similarity(image, text))


def test_open_clip_loads_the_folder_and_preprocesses_alike(clip, drawn):
    import open_clip
    from PIL import Image

    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{CHECKPOINTS / 'clip'}")
    model.eval()
    levels = (drawn[0][:8, 0] * 255).round()
    pictures = [Image.fromarray(v.permute(1, 2, 0).to(torch.uint8).numpy()) for v in levels]
    with torch.no_grad():
        theirs = model.encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
    torch.testing.assert_close(clip.image_features(levels[:, None] / 255), theirs, atol=1e-4, rtol=0)


def test_every_word_has_a_token(clip):
    tokens = clip.tokenizer(vocabulary())
    assert tokens.shape == (len(vocabulary()), 8)
    assert len({tuple(row) for row in tokens.tolist()}) == len(vocabulary())
    longest = max((p.text for p in prompts("test", 600)), key=lambda text: len(text.split()))
    assert (clip.tokenizer([longest])[0] == 1).any(), "the end token, where the text is pooled, was cut off"


def test_other_true_pairs_are_never_negatives():
    zeros = torch.zeros(4, 4)
    everything, own = torch.ones(4, 4, dtype=torch.bool), torch.eye(4, dtype=torch.bool)
    assert contrastive_loss(zeros, everything).item() == pytest.approx(0)
    assert contrastive_loss(zeros, own).item() == pytest.approx(math.log(4))
    assert contrastive_loss(torch.zeros(6, 4), own).item() == pytest.approx((math.log(4) + math.log(6)) / 2)


def test_what_else_is_true_of_a_scene():
    rng = np.random.default_rng(0)
    scene = random_spec_scene(rng, "color_attr")
    one, other = scene.spec["objects"]
    spec = {"skill": "color_attr", "objects": [other, one], "relation": None, "place": None}
    free = spec | {"skill": "two_objects", "objects": [{**one, "color": None}, {**other, "color": None}]}
    swapped = {"objects": [{**one, "color": other["color"]}, {**other, "color": one["color"]}], "relation": None, "place": None}
    alone = {"objects": [one], "relation": None, "place": None}
    assert also_true([scene], [scene.spec, spec, free, swapped, alone]).tolist() == [[True, True, True, False, False]]
    assert rival_spec(scene.spec, rng)["skill"] == "color_attr"


def test_wrong_media_are_refused(clip):
    with pytest.raises(ValueError, match=r"\(1, 1, 3, 32, 32\)"):
        clip.image_features(torch.zeros(1, 1, 3, 32, 32))
    with pytest.raises(ValueError, match="NaN"):
        clip.image_features(torch.full((1, 1, 3, 64, 64), float("nan")))


def test_saves_and_loads(clip, drawn, tmp_path):
    clip.save_pretrained(tmp_path)
    again = EmbeddedClip.from_pretrained(tmp_path)
    right, wanted, _ = drawn
    assert torch.equal(clip.score(right[:8], wanted[:8]), again.score(right[:8], wanted[:8]))
    assert (tmp_path / clip_module.WEIGHTS_NAME).stat().st_size <= 1_000_000


@pytest.mark.parametrize("name", [clip_module.CONFIG_NAME, clip_module.WEIGHTS_NAME, "tokenizer.json"])
def test_a_missing_file_is_named(clip, tmp_path, name):
    clip.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / name} not found; train it with"):
        EmbeddedClip.from_pretrained(tmp_path)
