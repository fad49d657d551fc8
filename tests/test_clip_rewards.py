"""HPSv2, CLIP score, aesthetic v2 and PickScore against open_clip, torchvision and transformers on the saved picture."""

from __future__ import annotations

import copy
import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pictures
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from otca.errors import InputError
from otca.rewards.base import build_reward, find_reward
from otca.rewards.clip import CONFIG, HEAD, HPS, AestheticV2, ClipScore, HPSv2, PickScore
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD, to_pictures, to_pixels
from tests.samples import LONG, SIZES, TEXTS, media_of, prompts, randomised, saved

CPU = torch.device("cpu")
OPEN_CLIP = "open_clip_model.safetensors"
TINY = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TINY_HPS = {key: value for key, value in TINY.items() if key != "quick_gelu"} | {
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 56}
}
USUAL = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "bicubic", "resize_mode": "shortest"}


def tower_folder(folder, model_cfg=TINY, preprocess_cfg=USUAL, weights=OPEN_CLIP, change=lambda weights: None):
    folder.mkdir(exist_ok=True)
    config = copy.deepcopy(model_cfg)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    state = randomised(kind(**config)).state_dict()
    change(state)
    save_file(state, folder / weights) if weights == OPEN_CLIP else torch.save(state, folder / weights)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}))
    return {name: folder / name for name in (CONFIG, weights)}


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_those_of_the_saved_files(size):
    media = media_of(size)
    assert [a.tobytes() for a in to_pictures(media[:, 0])] == [b.tobytes() for b in saved(media)]
    assert to_pixels(torch.tensor([-0.2, 0.4999 / 255, 1.7])).tolist() == [0, 0, 255]


def open_clips_own(folder, media, texts):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack([preprocess(picture) for picture in saved(media)]), normalize=True)
        return (images * model.encode_text(tokens, normalize=True)).sum(-1)


@pytest.mark.parametrize(
    "how", [{}, {"resize_mode": "squash", "interpolation": "bilinear"}, {"resize_mode": "longest", "mean": [0.5] * 3}]
)
def test_the_clip_score_is_open_clips(tmp_path, how):
    reward = ClipScore(tower_folder(tmp_path / "tower", preprocess_cfg=USUAL | how), CPU)
    for media in map(media_of, SIZES):
        expected, found = open_clips_own(tmp_path / "tower", media, TEXTS), reward.score(media, prompts(TEXTS))
        assert (found - expected).abs().max() <= 1e-5 < expected.std() / 100
        assert found.dtype == torch.float32 and found.shape == (3,)


def test_a_bin_file_whose_logit_scale_is_a_vector(tmp_path):
    own, other = tower_folder(tmp_path / "a"), "open_clip_pytorch_model.bin"
    files = tower_folder(tmp_path / "b", weights=other, change=lambda w: w.update(logit_scale=w["logit_scale"].reshape(1)))
    media = media_of(SIZES[0])
    expected = ClipScore(own, CPU).score(media, prompts(TEXTS))
    assert torch.equal(find_reward("clip_dfn5b")(files, CPU).score(media, prompts(TEXTS)), expected)


def test_a_video_scores_the_mean_of_its_frames_and_a_batch_its_samples(tmp_path):
    reward, media = ClipScore(tower_folder(tmp_path / "tower"), CPU), media_of(SIZES[0], frames=4)
    found = reward.score(media, prompts(TEXTS))
    frames = torch.stack([reward.score(media[:, i : i + 1], prompts(TEXTS)) for i in range(4)])
    alone = torch.cat([reward.score(media[i : i + 1], prompts([text])) for i, text in enumerate(TEXTS)])
    assert torch.allclose(found, frames.mean(0), atol=1e-6) and torch.allclose(found, alone, atol=1e-6)


def published_hps_input(picture):
    """hpsv2/src/open_clip/transform.py: a tensor first, the longest side to 224, black around it."""
    tensor = pictures.to_tensor(picture)
    scale = 224 / max(tensor.shape[1:])
    tensor = pictures.resize(tensor, [round(side * scale) for side in tensor.shape[1:]], InterpolationMode.BICUBIC)
    right, below = 224 - tensor.shape[2], 224 - tensor.shape[1]
    tensor = pictures.pad(tensor, [right // 2, below // 2, right - right // 2, below - below // 2])
    return pictures.normalize(tensor, CLIP_MEAN, CLIP_STD)


def test_hpsv2_is_that_of_the_published_preprocessing(tmp_path, monkeypatch):
    monkeypatch.setattr(HPSv2, "architecture", TINY_HPS)
    model = randomised(open_clip.CLIP(**copy.deepcopy(TINY_HPS)))
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, tmp_path / HPS)
    reward = HPSv2({HPS: tmp_path / HPS}, CPU)
    for media in map(media_of, [*SIZES, (300, 520)]):
        with torch.no_grad():
            inputs = torch.stack([published_hps_input(picture) for picture in saved(media)])
            images, texts, _ = model(inputs, open_clip.tokenize(TEXTS))
        expected, found = (images @ texts.T).diagonal(), reward.score(media, prompts(TEXTS))
        assert (found - expected).abs().max() <= 1e-5 < expected.std() / 100


def test_hpsv2_reads_a_file_of_float16_into_a_network_of_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(HPSv2, "architecture", TINY_HPS)
    half = {key: value.half() for key, value in randomised(open_clip.CLIP(**copy.deepcopy(TINY_HPS))).state_dict().items()}
    torch.save({"state_dict": half}, tmp_path / HPS)
    found = HPSv2({HPS: tmp_path / HPS}, CPU).model.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, half[key].float()) for key, value in found.items())


def head_of(features):
    generator = torch.Generator().manual_seed(1)
    width, place = (features, 1024, 128, 64, 16, 1), (0, 2, 4, 6, 7)
    shapes = {f"layers.{i}.weight": (b, a) for i, a, b in zip(place, width, width[1:])}
    shapes |= {f"layers.{i}.bias": (b,) for i, b in zip(place, width[1:])}
    return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in shapes.items()}


def test_aesthetic_v2_is_five_layers_on_unit_features(tmp_path):
    head, folder = head_of(16), tmp_path / "tower"
    torch.save(head, tmp_path / HEAD)
    reward = AestheticV2(tower_folder(folder) | {HEAD: tmp_path / HEAD}, CPU)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    for media in map(media_of, SIZES):
        with torch.no_grad():
            expected = model.eval().encode_image(torch.stack([preprocess(picture) for picture in saved(media)]))
        expected = expected / expected.norm(dim=-1, keepdim=True)
        for i in (0, 2, 4, 6, 7):
            expected = functional.linear(expected, head[f"layers.{i}.weight"], head[f"layers.{i}.bias"])
        found = reward.score(media, prompts(TEXTS))
        assert (found - expected[:, 0]).abs().max() <= 1e-3 < expected.std() / 10
        assert torch.equal(found, reward.score(media, prompts(["another"] * 3)))


def test_pictures_are_resized_in_their_own_mode(tmp_path):
    """As open_clip does: a palette and one bit are resized before they are made RGB, and transparency weighs the colours."""
    reward = ClipScore(tower_folder(tmp_path / "tower"), CPU)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'tower'}")
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 4), dtype=np.uint8), "RGBA")
    for picture in (rgba, rgba.convert("RGB").quantize(16), rgba.convert("1")):
        with torch.no_grad():
            image = model.encode_image(preprocess(picture)[None], normalize=True)
            expected = (image * model.encode_text(open_clip.tokenize(["a cube"]), normalize=True)).sum()
        assert abs(reward.score_pictures([picture], ["a cube"]) - expected) < 1e-5
        assert abs(reward.score_pictures([picture.convert("RGB")], ["a cube"]) - expected) > 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("visual.proj"), "visual.proj"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
        (lambda w: w.update(text_projection=torch.zeros(32, 8)), "text_projection"),
        (lambda w: w["visual.proj"].fill_(float("nan")), "NaN or Inf in visual.proj"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(tmp_path, change, said):
    tower_folder(tmp_path / "clip_b32", change=change)
    with pytest.raises(InputError, match=f"reward 'clip_b32': .*{tmp_path / 'clip_b32'}.*{said}") as caught:
        build_reward("clip_b32", files=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_head_and_a_configuration_of_something_else_are_refused(tmp_path):
    (tmp_path / "aesthetic_v2").mkdir()
    tower_folder(tmp_path / "aesthetic_v2")
    torch.save(head_of(24), tmp_path / "aesthetic_v2" / HEAD)
    with pytest.raises(InputError, match="does not fit: .*layers.0.weight"):
        build_reward("aesthetic_v2", files=tmp_path)
    foreign = json.dumps({"model_cfg": TINY | {"multimodal_cfg": {}}})
    for content, said in (("{", "not JSON"), ("{}", "has no model_cfg of a CLIP"), (foreign, "not supported")):
        (tmp_path / "aesthetic_v2" / CONFIG).write_text(content)
        with pytest.raises(InputError, match=f"reward 'aesthetic_v2': .*{said}"):
            build_reward("aesthetic_v2", files=tmp_path)


@pytest.mark.parametrize("size", [(1, 1_000_000), (210, 2)])
def test_pictures_too_thin_to_be_cropped_are_refused(tmp_path, size):
    with pytest.raises(InputError, match="^clip: a picture of .* is too thin; one side may be 100 times the other, so crop it"):
        ClipScore(tower_folder(tmp_path / "tower"), CPU).score(torch.ones(1, 1, 3, *size), prompts(["a"]))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """CLIP's own vocabulary, in the two files that transformers reads."""
    own, folder = open_clip.tokenizer.SimpleTokenizer(), tmp_path_factory.mktemp("laion")
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps({names.get(key, key): i for key, i in own.encoder.items()}))
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    return {name: folder / name for name in ("vocab.json", "merges.txt")}


def pickscore_files(folder, vocabulary, end=2, change=lambda weights: None):
    """As published: a configuration with the old end token, and weights that hold the positions counted up."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16}
    text = small | {"hidden_act": "gelu", "eos_token_id": end}
    vision = small | {"hidden_act": "gelu", "image_size": 224, "patch_size": 56}
    randomised(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    for name, count in (("text", 77), ("vision", 17)):
        weights[f"{name}_model.embeddings.position_ids"] = torch.arange(count)[None]
    change(weights)
    save_file(weights, folder / "model.safetensors")
    return {name: folder / name for name in ("config.json", "model.safetensors")} | vocabulary


@pytest.mark.parametrize("end", [2, 49407])
def test_pickscore_is_that_of_transformers(tmp_path, vocabulary, end):
    files, texts = pickscore_files(tmp_path, vocabulary, end), [*TEXTS[:2], LONG]
    reward = PickScore(files, CPU)
    model = CLIPModel.from_pretrained(tmp_path).eval()
    tokenizer = CLIPTokenizer(vocab=str(files["vocab.json"]), merges=str(files["merges.txt"]))
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=77, return_tensors="pt")
    for media in map(media_of, [*SIZES, (200, 203)]):  # the last leaves an odd margin to crop
        with torch.no_grad():
            images = CLIPImageProcessorPil()(saved(media), return_tensors="pt")
            expected = model(**images, **tokens).logits_per_image.diagonal()
        found = reward.score(media, prompts(texts))
        assert (found - expected).abs().max() <= 1e-5 < expected.std() / 100
        assert found.dtype == torch.float32
