"""ImageReward on a small random checkpoint of the published layout: known scores, and files that do not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from otca.rewards.base import build_reward
from otca.rewards.image_reward import ImageReward
from otca.types import Prompt
from tests.samples import small_weights

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cube", "on", "blue", "ball", "##s", ",", "two"]
VISION = {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
SHAPE = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KEPT = {
    "max_position_embeddings": 40,
    "vocab_size": len(WORDS) + 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
UNREAD = {
    "model_type": "bert",
    "hidden_dropout_prob": 0.1,
    "type_vocab_size": 2,
    "encoder_width": 768,
    "add_cross_attention": True,
}
MED_CONFIG = SHAPE | KEPT | UNREAD


class Small(ImageReward):
    """The published class with a small vision tower."""

    vision = ImageReward.vision | VISION | {"image_size": 32, "patch_size": 8}


WEIGHTS = small_weights("image_reward") | {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None]}
"""Of every key of the published file, projections and position numbers included."""


def write_files(folder, weights=WEIGHTS, **settings):
    """The published file set in ``folder/image_reward``; settings change med_config.json."""
    folder = folder / "image_reward"
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG | settings))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return {name: folder / name for name in ("ImageReward.pt", "med_config.json", "vocab.txt")}


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    write_files(root)
    return build_reward(f"{__name__}:Small", files=root)


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-60, 315, height * width * 3).reshape(height, width, 3)
    return np.clip(ramp + rng.normal(0, 80, (height, width, 3)), 0, 255).astype(np.uint8)


def media(*pixels_HWC):
    """Pictures as a batch (B, 1, 3, H, W)."""
    return torch.from_numpy(np.stack(pixels_HWC)).permute(0, 3, 1, 2)[:, None] / 255


def prompts(*texts):
    return [Prompt(id=str(i), text=text) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("size", "text", "expected"),
    [
        ((32, 32), "A red cube", 0.220045),
        ((45, 83), "two balls, on a zebra", 0.038134),
        ((64, 40), "", 0.064438),
        ((20, 27), "a [ENC] cube [DEC] [enc]", -0.079365),
    ],
)
def test_scores_are_those_of_the_files_own_keys(reward, size, text, expected):
    """As a pass in float64 gives them, written out from the keys of the published file."""
    assert reward.score(media(picture(*size)), prompts(text)).item() == pytest.approx(expected, abs=1e-4)


def test_a_video_is_the_mean_of_its_frames(reward):
    video = media(*(picture(40, 60, seed) for seed in range(3))).transpose(0, 1)
    assert reward.score(video, prompts("a red cube")).item() == pytest.approx(0.065964, abs=1e-4)


def test_texts_are_cut_at_35_tokens(reward):
    words = ["a", "red", "cube", "on", "two", "blue", "ball"] * 6
    pixels = picture(32, 32)
    scores = reward.score(media(pixels, pixels, pixels), prompts(*(" ".join(words[:n]) for n in (42, 33, 32))))
    assert scores[0] == scores[1]
    assert scores.tolist()[1:] == pytest.approx([0.201757, 0.205372], abs=1e-4)
    assert abs(scores[1] - scores[2]) > 1e-3


def test_projections_and_position_numbers_are_optional(reward, tmp_path):
    bare = {k: v for k, v in WEIGHTS.items() if "_proj." not in k and "position_ids" not in k}
    assert len(bare) == len(WEIGHTS) - 5
    other = Small(write_files(tmp_path, bare), torch.device("cpu"))
    image, text = media(picture(32, 32)), prompts("a red cube")
    assert other.score(image, text) == reward.score(image, text)
