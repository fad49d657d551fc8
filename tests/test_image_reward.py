"""ImageReward: its scores are those of a forward pass written out from the checkpoint's own keys."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import transforms

from otca.rewards.base import build_reward
from otca.rewards.image_reward import ImageReward
from otca.types import Prompt

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cube", "on", "blue", "ball", "##s", ",", "two"]
SIZE, PATCH, WIDTH, VISION_HEADS, VISION_LAYERS = 32, 8, 24, 3, 2
TEXT_WIDTH, TEXT_HEADS, TEXT_LAYERS = 16, 4, 2
VISION = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": VISION_LAYERS}
VISION = ImageReward.vision | VISION | {"num_attention_heads": VISION_HEADS, "image_size": SIZE, "patch_size": PATCH}
SHAPE = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": TEXT_LAYERS,
    "num_attention_heads": TEXT_HEADS,
    "max_position_embeddings": 40,
    "vocab_size": len(WORDS) + 2,
}
KEPT = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}
UNREAD = {"model_type": "bert", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "type_vocab_size": 2}
MED_CONFIG = SHAPE | KEPT | UNREAD | {"architectures": ["BertModel"], "encoder_width": 768, "add_cross_attention": True}
DEC, ENC = len(WORDS), len(WORDS) + 1
MLP = {0: (1024, TEXT_WIDTH), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}


def checkpoint() -> dict[str, torch.Tensor]:
    """Random tensors under every key of the published file, projections and position numbers included."""
    generator = torch.Generator().manual_seed(0)
    out: dict[str, torch.Tensor] = {}

    def noise(*shape, scale):
        return scale * torch.randn(shape, generator=generator)

    def linear(key, rows, columns, gain=1.0):
        out[f"{key}.weight"] = noise(rows, columns, scale=gain / math.sqrt(columns))
        out[f"{key}.bias"] = noise(rows, scale=0.3)

    def norm(key, width):
        out[f"{key}.weight"], out[f"{key}.bias"] = 1 + noise(width, scale=0.3), noise(width, scale=0.3)

    def attention(key, keys_width):
        for part, width in (("query", TEXT_WIDTH), ("key", keys_width), ("value", keys_width)):
            linear(f"{key}.self.{part}", TEXT_WIDTH, width, gain=1.5)
        linear(f"{key}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
        norm(f"{key}.output.LayerNorm", TEXT_WIDTH)

    # the vision tower starts so small that the epsilon of its first norm shows
    vision, text = "blip.visual_encoder", "blip.text_encoder"
    out[f"{vision}.cls_token"] = noise(1, 1, WIDTH, scale=0.002)
    out[f"{vision}.pos_embed"] = noise(1, (SIZE // PATCH) ** 2 + 1, WIDTH, scale=0.002)
    out[f"{vision}.patch_embed.proj.weight"] = noise(WIDTH, 3, PATCH, PATCH, scale=0.0002)
    out[f"{vision}.patch_embed.proj.bias"] = noise(WIDTH, scale=0.001)
    for layer in range(VISION_LAYERS):
        block = f"{vision}.blocks.{layer}"
        norm(f"{block}.norm1", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH, gain=1.5)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    norm(f"{vision}.norm", WIDTH)
    out[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    out[f"{text}.embeddings.word_embeddings.weight"] = noise(len(WORDS) + 2, TEXT_WIDTH, scale=0.002)
    out[f"{text}.embeddings.position_embeddings.weight"] = noise(40, TEXT_WIDTH, scale=0.002)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    for layer in range(TEXT_LAYERS):
        block = f"{text}.encoder.layer.{layer}"
        attention(f"{block}.attention", TEXT_WIDTH)
        attention(f"{block}.crossattention", WIDTH)
        linear(f"{block}.intermediate.dense", 4 * TEXT_WIDTH, TEXT_WIDTH)
        linear(f"{block}.output.dense", TEXT_WIDTH, 4 * TEXT_WIDTH)
        norm(f"{block}.output.LayerNorm", TEXT_WIDTH)
    linear("blip.vision_proj", 8, WIDTH)
    linear("blip.text_proj", 8, TEXT_WIDTH)
    for number, (rows, columns) in MLP.items():
        linear(f"mlp.layers.{number}", rows, columns)
    return out


def expected(weights, pixel_HWC, ids) -> float:
    """ImageReward of one picture and the tokens of one text (unpadded), in float64 from the file's own keys."""
    w = {key: value.double() for key, value in weights.items()}

    def linear(key, x):
        return F.linear(x, w[f"{key}.weight"], w[f"{key}.bias"])

    def norm(key, x, epsilon):
        center = x - x.mean(-1, keepdim=True)
        return center / (center.square().mean(-1, keepdim=True) + epsilon).sqrt() * w[f"{key}.weight"] + w[f"{key}.bias"]

    def attend(query, key, value, heads):
        query, key, value = (x.unflatten(-1, (heads, -1)).movedim(1, 0) for x in (query, key, value))
        weight = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return (weight @ value).movedim(0, 1).flatten(1)

    preprocess = transforms.Compose(
        [
            transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    image = preprocess(Image.fromarray(pixel_HWC)).double()
    root = "blip.visual_encoder"
    patches = F.conv2d(image[None], w[f"{root}.patch_embed.proj.weight"], w[f"{root}.patch_embed.proj.bias"], stride=PATCH)
    x = torch.cat([w[f"{root}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{root}.pos_embed"][0]
    for layer in range(VISION_LAYERS):
        block = f"{root}.blocks.{layer}"
        query, key, value = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + linear(f"{block}.attn.proj", attend(query, key, value, VISION_HEADS))
        x = x + linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6))))
    patch = norm(f"{root}.norm", x, 1e-6)

    root = "blip.text_encoder"
    words = w[f"{root}.embeddings.word_embeddings.weight"][ids] + w[f"{root}.embeddings.position_embeddings.weight"][: len(ids)]
    x = norm(f"{root}.embeddings.LayerNorm", words, 1e-12)
    for layer in range(TEXT_LAYERS):
        block = f"{root}.encoder.layer.{layer}"
        for part in ("attention", "crossattention"):
            seen = x if part == "attention" else patch
            query, key, value = (
                linear(f"{block}.{part}.self.{name}", of) for name, of in (("query", x), ("key", seen), ("value", seen))
            )
            out = linear(f"{block}.{part}.output.dense", attend(query, key, value, TEXT_HEADS))
            x = norm(f"{block}.{part}.output.LayerNorm", x + out, 1e-12)
        out = linear(f"{block}.output.dense", F.gelu(linear(f"{block}.intermediate.dense", x)))
        x = norm(f"{block}.output.LayerNorm", x + out, 1e-12)

    value = x[0]
    for number in MLP:
        value = linear(f"mlp.layers.{number}", value)
    return (value.item() - 0.16717362830052426) / 1.0333394966054072


class Small(ImageReward):
    """The published class with a small vision tower."""

    vision = VISION


WEIGHTS = checkpoint()


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


@pytest.mark.parametrize("size", [(32, 32), (45, 83), (64, 40), (20, 27)])
@pytest.mark.parametrize(
    "text, ids",
    [
        ("A red cube", [2, 5, 6, 7, 3]),
        ("two balls, on a zebra", [2, 13, 10, 11, 12, 8, 5, 1, 3]),
        ("", [2, 3]),
        ("a [ENC] cube [DEC] [enc]", [2, 5, ENC, 7, DEC, 1, 1, 1, 3]),
    ],
)
def test_scores_are_those_of_the_files_own_keys(reward, size, text, ids):
    pixels = picture(*size)
    assert reward.score(media(pixels), prompts(text)).item() == pytest.approx(expected(WEIGHTS, pixels, ids), abs=1e-4)


def test_a_video_is_the_mean_of_its_frames(reward):
    frames = [picture(40, 60, seed) for seed in range(3)]
    video = media(*frames).transpose(0, 1)
    each = [expected(WEIGHTS, frame, [2, 5, 6, 7, 3]) for frame in frames]
    assert reward.score(video, prompts("a red cube")).item() == pytest.approx(np.mean(each), abs=1e-4)


def test_texts_are_cut_at_35_tokens(reward):
    words = ["a", "red", "cube", "on", "two", "blue", "ball"] * 6
    ids = [WORDS.index(word) for word in words]
    pixels = picture(32, 32)
    scores = reward.score(media(pixels, pixels, pixels), prompts(*(" ".join(words[:n]) for n in (42, 33, 32))))
    assert scores[0] == scores[1]
    assert scores.tolist()[1:] == pytest.approx([expected(WEIGHTS, pixels, [2, *ids[:n], 3]) for n in (33, 32)], abs=1e-4)
    assert abs(scores[1] - scores[2]) > 1e-3


def test_projections_and_position_numbers_are_optional(reward, tmp_path):
    bare = {k: v for k, v in WEIGHTS.items() if "_proj." not in k and "position_ids" not in k}
    assert len(bare) == len(WEIGHTS) - 5
    other = Small(write_files(tmp_path, bare), torch.device("cpu"))
    image, text = media(picture(32, 32)), prompts("a red cube")
    assert other.score(image, text) == reward.score(image, text)
