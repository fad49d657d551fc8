"""ViCLIP on a small random checkpoint of the published layout: its scores are those of a pass written out by the file's names."""

from __future__ import annotations

import json
import math

import open_clip
import pandas as pd
import pytest
import torch
from torchvision.transforms import functional as transforms

from eval.metrics import viclip
from eval.metrics.vbench import dimension_means, read_entries
from eval.metrics.viclip import ViClip, frame_indices
from otca.errors import InputError
from otca.files import sha256
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD

PATCH, WIDTH, LAYERS, FRAMES, FEATURES = 56, 128, 2, 8, 24
WORDS, TEXT_WIDTH, TEXT_LAYERS, CONTEXT = 49408, 64, 1, 32
TEXTS = ["A red Ball &amp; two cats, it's 3 o'clock", "a dog " * 40 + "in snow", "a dog " * 15 + "in rain"]


def checkpoint() -> dict[str, torch.Tensor]:
    """Random tensors under every name of ViClip-InternVid-10M-FLT.pth."""
    generator = torch.Generator().manual_seed(0)
    out: dict[str, torch.Tensor] = {"temp": torch.tensor(0.01)}

    def noise(name, *shape, scale=0.1, offset=0.0):
        out[name] = offset + scale * torch.randn(shape, generator=generator)

    def norm(name, width):
        noise(f"{name}.weight", width, offset=1.0)
        noise(f"{name}.bias", width)

    def blocks(name, layers, width):
        for layer in range(layers):
            block = f"{name}.transformer.resblocks.{layer}"
            noise(f"{block}.attn.in_proj_weight", 3 * width, width, scale=1.5 / math.sqrt(width))
            noise(f"{block}.attn.in_proj_bias", 3 * width)
            for part, rows, columns in (
                ("attn.out_proj", width, width),
                ("mlp.c_fc", 4 * width, width),
                ("mlp.c_proj", width, 4 * width),
            ):
                noise(f"{block}.{part}.weight", rows, columns, scale=1 / math.sqrt(columns))
                noise(f"{block}.{part}.bias", rows)
            norm(f"{block}.ln_1", width)
            norm(f"{block}.ln_2", width)

    vision, text = "vision_encoder", "text_encoder"
    noise(f"{vision}.class_embedding", WIDTH)
    noise(f"{vision}.positional_embedding", (224 // PATCH) ** 2 + 1, WIDTH)
    noise(f"{vision}.temporal_positional_embedding", 1, FRAMES, WIDTH)
    noise(f"{vision}.proj", WIDTH, FEATURES)
    noise(f"{vision}.conv1.weight", WIDTH, 3, 1, PATCH, PATCH, scale=0.005)
    norm(f"{vision}.ln_pre", WIDTH)
    norm(f"{vision}.ln_post", WIDTH)
    blocks(vision, LAYERS, WIDTH)
    noise(f"{text}.token_embedding.weight", WORDS, TEXT_WIDTH)
    noise(f"{text}.positional_embedding", CONTEXT, TEXT_WIDTH)
    noise(f"{text}.text_projection", TEXT_WIDTH, FEATURES)
    norm(f"{text}.ln_final", TEXT_WIDTH)
    blocks(text, TEXT_LAYERS, TEXT_WIDTH)
    return out


class Written:
    """ViCLIP in float64, step by step from the file's names."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        self.w = {name: value.double() for name, value in weights.items()}

    def norm(self, name, x):
        centred = x - x.mean(-1, keepdim=True)
        root = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / root * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def blocks(self, name, x, mask=0.0):
        for layer in range(sum(key.startswith(f"{name}.transformer") and key.endswith("in_proj_bias") for key in self.w)):
            block = f"{name}.transformer.resblocks.{layer}"

            def linear(part, x, block=block, last="weight", bias="bias", join="."):
                return x @ self.w[f"{block}.{part}{join}{last}"].T + self.w[f"{block}.{part}{join}{bias}"]

            query, key, value = (
                linear("attn.in_proj", self.norm(f"{block}.ln_1", x), join="_").unflatten(-1, (3, -1, 64)).permute(1, 2, 0, 3)
            )
            weight = (query @ key.mT / 8 + mask).softmax(-1)
            x = x + linear("attn.out_proj", (weight @ value).transpose(0, 1).flatten(1))
            hidden = linear("mlp.c_fc", self.norm(f"{block}.ln_2", x))
            x = x + linear("mlp.c_proj", hidden * torch.sigmoid(1.702 * hidden))
        return x

    def video(self, frames_FCHW):
        side, name = 224 // PATCH, "vision_encoder"
        cut = (
            frames_FCHW.double()
            .unflatten(2, (side, PATCH))
            .unflatten(4, (side, PATCH))
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(3)
            .flatten(1, 2)
        )
        patch = cut @ self.w[f"{name}.conv1.weight"][:, :, 0].flatten(1).T  # frame, place, width
        place, time = self.w[f"{name}.positional_embedding"], self.w[f"{name}.temporal_positional_embedding"][0]
        tokens = [self.w[f"{name}.class_embedding"] + place[0]]
        for at in range(side * side):
            tokens += [patch[frame, at] + place[1 + at] + time[frame] for frame in range(FRAMES)]
        x = self.blocks(name, self.norm(f"{name}.ln_pre", torch.stack(tokens)))
        return self.norm(f"{name}.ln_post", x)[0] @ self.w[f"{name}.proj"]

    def text(self, tokens: list[int]):
        name, count = "text_encoder", len(tokens)
        x = self.w[f"{name}.token_embedding.weight"][tokens] + self.w[f"{name}.positional_embedding"][:count]
        x = self.blocks(name, x, torch.full((count, count), -math.inf).triu(1))  # what follows the end is not seen
        return self.norm(f"{name}.ln_final", x)[-1] @ self.w[f"{name}.text_projection"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("viclip") / "ViClip-InternVid-10M-FLT.pth"
    torch.save({"model": checkpoint()}, path)
    return path


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """Coloured waves that drift, on the 256 levels of a file."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [0.5 + 0.5 * torch.sin(0.2 * x * (c + 1) + 0.13 * y + 1.3 * f) for f in range(frames) for c in range(3)]
    return (torch.stack(waves).unflatten(0, (frames, 3)) * 255).round() / 255


def words(text: str) -> list[int]:
    """CLIP's tokens of a text with its two ends, at most 32."""
    encoder = open_clip.SimpleTokenizer()
    inner = encoder.encode(text)
    return [49406, *inner[: CONTEXT - 2], 49407]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    ("frames", "height", "width", "seen"), [(16, 90, 160, [0, 2, 4, 6, 8, 10, 12, 14]), (3, 64, 48, [0, 1] + [2] * 6)]
)
def test_scores_are_those_of_the_pass_written_out(weights, text, frames, height, width, seen):
    video = clip(frames, height, width)
    pixels = transforms.resize((video * 255).round().byte()[seen], [224], transforms.InterpolationMode.BICUBIC, antialias=False)
    normal = transforms.normalize(transforms.center_crop(pixels, [224, 224]) / 255, CLIP_MEAN, CLIP_STD)
    peer = Written(checkpoint())
    expected = torch.nn.functional.cosine_similarity(peer.video(normal), peer.text(words(text)), dim=0)
    metric = ViClip(weights)
    assert metric.score(video, text) == pytest.approx(float(expected), abs=1e-5)
    assert metric.score(video, text) == metric.score(video, text)  # the text's features are kept
    assert abs(metric.score(video, text) - metric.score(video.flip(0), text)) > 1e-4  # and time has a direction


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [0] * 8),
        (5, [0, 1, 2, 3, 4, 4, 4, 4]),
        (8, list(range(8))),
        (9, [0, 1, 2, 3, 4, 5, 6, 7]),
        (16, [0, 2, 4, 6, 8, 10, 12, 14]),
        (49, [2, 8, 14, 20, 26, 32, 38, 45]),
    ],
)
def test_the_middle_of_eight_parts_is_looked_at(frames, expected):
    assert frame_indices(frames) == expected


def test_vbenchs_name_needs_its_own_file(weights, monkeypatch):
    assert len(viclip.SHA256) == 64 and ViClip(weights).column == "overall_consistency_viclip"
    monkeypatch.setattr(viclip, "SHA256", sha256(weights))
    assert ViClip(weights).column == "overall_consistency"


def changed(change):
    tensors = checkpoint()
    change(tensors)
    return {"model": tensors}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed(lambda t: t.pop("text_encoder.ln_final.bias")), r"does not fit: .*text_encoder\.ln_final\.bias"),
        (changed(lambda t: t.pop("vision_encoder.proj")), r"no file of ViCLIP: it lacks vision_encoder\.proj; fetch ViClip"),
        (
            changed(lambda t: t.update({"vision_encoder.conv1.weight": torch.zeros(5, 3, 1, 56, 56)})),
            "is of no network that open_clip builds",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"^metric 'overall_consistency_viclip': .*other\.pth .*{said}"):
        ViClip(tmp_path / "other.pth")


# ------------------------------------------------------------------------------------------------------------ VBench's table


def test_temporal_style_is_overall_consistency_of_its_own_prompts(tmp_path):
    listed = [
        {"prompt_en": "a bay, zoom in", "dimension": ["temporal_style"]},
        {"prompt_en": "a cat", "dimension": ["overall_consistency"]},
    ]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    rows = pd.DataFrame({"file": ["a", "b"], "prompt_id": ["000001", "000002"], "text": ["a bay, zoom in", "a cat"], "error": ""})
    table = dimension_means(rows.assign(overall_consistency=[0.2, 0.3]), read_entries(tmp_path / "list.json"))
    assert table["mean"].to_dict() == {"temporal_style": 0.2, "overall_consistency": 0.3}
    other = dimension_means(rows.assign(overall_consistency_viclip=[0.2, 0.3]), read_entries(tmp_path / "list.json"))
    assert other.empty
