"""HPSv2, CLIP score and aesthetic v2 against open_clip and torchvision on the saved picture."""

from __future__ import annotations

import copy
import dataclasses
import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as pictures
from transformers import PreTrainedTokenizerFast

from otca.errors import InputError
from otca.rewards.base import REGISTRY, build_reward, find_reward
from otca.rewards.clip import HEAD, HPS, OPENAI_L14, AestheticV2, ClipScore, HPSv2
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.rewards.tower import CONFIG
from tests.samples import SIZES, TEXTS, media_of, prompts, randomised, saved

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


def open_clips_own(folder, media, texts):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack([preprocess(picture) for picture in saved(media)]), normalize=True)
        return (images * model.encode_text(tokens, normalize=True)).sum(-1)


def words_tokenizer(folder):
    """A tokenizer of the hub's kind, of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: index for index, word in enumerate(("[PAD]", "[UNK]", "a", "red", "cube", "two", "green", "spheres"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


SIGLIP_LIKE = TINY | {
    "custom_text": True,
    "quick_gelu": False,
    "init_logit_bias": -10,
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 8,
        "hf_tokenizer_name": "someone/words",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 32,
        "heads": 2,
        "layers": 1,
        "pool_type": "last",
        "no_causal_mask": True,
    },
}


@pytest.mark.parametrize(
    "how", [{}, {"resize_mode": "squash", "interpolation": "bilinear"}, {"resize_mode": "longest", "mean": [0.5] * 3}]
)
def test_the_clip_score_is_open_clips(tmp_path, how):
    reward = ClipScore(tower_folder(tmp_path / "tower", preprocess_cfg=USUAL | how), CPU)
    for media in map(media_of, SIZES):
        expected, found = open_clips_own(tmp_path / "tower", media, TEXTS), reward.score(media, prompts(TEXTS))
        assert (found - expected).abs().max() <= 1e-5 < expected.std() / 100
        assert found.dtype == torch.float32 and found.shape == (3,)


def test_a_tower_with_a_tokenizer_and_a_text_encoder_of_its_own(tmp_path):
    files, media = tower_folder(tmp_path / "tower", SIGLIP_LIKE), media_of(SIZES[0])
    with pytest.raises(InputError, match="tokenizes with someone/words, but .* lacks tokenizer.json and tokenizer_config.json"):
        ClipScore(files, CPU)
    words_tokenizer(tmp_path / "tower")
    expected = open_clips_own(tmp_path / "tower", media, TEXTS)
    assert (ClipScore(files, CPU).score(media, prompts(TEXTS)) - expected).abs().max() <= 1e-5 < expected.std() / 100


def test_a_bin_file_whose_logit_scale_is_a_vector(tmp_path):
    own, other = tower_folder(tmp_path / "a"), "open_clip_pytorch_model.bin"
    files = tower_folder(tmp_path / "b", weights=other, change=lambda w: w.update(logit_scale=w["logit_scale"].reshape(1)))
    media = media_of(SIZES[0])
    expected = ClipScore(own, CPU).score(media, prompts(TEXTS))
    assert torch.equal(find_reward("clip_dfn5b")(files, CPU).score(media, prompts(TEXTS)), expected)


def test_the_configuration_decides_the_activation(tmp_path):
    scores = [
        ClipScore(tower_folder(tmp_path / str(quick), TINY | {"quick_gelu": quick}), CPU).score(
            media_of(SIZES[0]), prompts(TEXTS)
        )
        for quick in (True, False)
    ]
    assert (scores[0] - scores[1]).abs().max() > 1e-4


def test_a_video_scores_the_mean_of_its_frames_and_a_batch_its_samples(tmp_path):
    reward, media = ClipScore(tower_folder(tmp_path / "tower"), CPU), media_of(SIZES[0], frames=4)
    found = reward.score(media, prompts(TEXTS))
    frames = torch.stack([reward.score(media[:, i : i + 1], prompts(TEXTS)) for i in range(4)])
    alone = torch.cat([reward.score(media[i : i + 1], prompts([text])) for i, text in enumerate(TEXTS)])
    assert torch.allclose(found, frames.mean(0), atol=1e-6) and torch.allclose(found, alone, atol=1e-6)


def test_each_distinct_text_is_encoded_once(tmp_path):
    reward, seen = ClipScore(tower_folder(tmp_path / "tower"), CPU), []
    tokenize = reward.tower.tokenize
    reward.tower = dataclasses.replace(reward.tower, tokenize=lambda texts: seen.extend(texts) or tokenize(texts))
    texts = [f"prompt {i // 12}" for i in range(36)]
    reward.score(media_of((32, 32), samples=36, frames=2), prompts(texts))
    assert seen == ["prompt 0", "prompt 1", "prompt 2"]


def test_the_protocol_names_the_tower(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-Tiny", TINY)
    assert ClipScore(tower_folder(tmp_path / "a"), CPU).protocol == {
        "backbone": "open_clip ViT-Tiny, files of timm/vit_large_patch14_clip_224.openai@" + OPENAI_L14[0].revision,
        "resolution": "32×32, shortest, bicubic",
    }
    other = ClipScore(tower_folder(tmp_path / "b", TINY | {"quick_gelu": False}), CPU)
    assert other.protocol["backbone"].startswith("open_clip tower of another shape")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("visual.proj"), "it lacks visual.proj"),
        (lambda w: w.update(extra=torch.zeros(1)), "it has too much extra"),
        (lambda w: w.update(text_projection=torch.zeros(32, 8)), r"another shape of text_projection \(32, 8\) for \(32, 16\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, said):
    files = tower_folder(tmp_path / "tower", change=change)
    with pytest.raises(InputError, match=f"reward 'clip': .*{OPEN_CLIP} does not fit: .*{said}"):
        ClipScore(files, CPU)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"resize_mode": "stretch"}, "resize_mode 'stretch'"),
        ({"interpolation": "lanczos"}, "interpolation 'lanczos'"),
        ({"resize_mode": "longest", "fill_color": 255}, "fill_color 255"),
        ({"mean": 0.5}, "mean 0.5"),
        ({"mode": "L"}, "mode 'L'"),
    ],
)
def test_a_preprocessing_that_is_not_reproduced_is_refused(tmp_path, how, said):
    files = tower_folder(tmp_path / "tower", preprocess_cfg=USUAL | how)
    with pytest.raises(InputError, match=f"asks for {said} at 32×32, a preprocessing that is not reproduced"):
        ClipScore(files, CPU)


def test_cropping_to_what_is_not_square_is_refused(tmp_path):
    wide = TINY | {"vision_cfg": TINY["vision_cfg"] | {"image_size": [32, 48]}}
    with pytest.raises(InputError, match="asks for resize_mode 'shortest' at 32×48"):
        ClipScore(tower_folder(tmp_path / "tower", wide), CPU)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "describes no tower of open_clip"),
        ('{"model": 1}', r"describes no tower of open_clip \(KeyError\('model_cfg'\)\)"),
        (json.dumps({"model_cfg": TINY | {"multimodal_cfg": {}}}), "has multimodal_cfg, which is not supported"),
        (
            json.dumps({"model_cfg": TINY | {"text_cfg": {"hf_model_name": "roberta-base"}}}),
            "has roberta-base, which is not supported",
        ),
        (json.dumps({"model_cfg": TINY | {"depth": 3}}), "open_clip cannot build the tower of .*unexpected keyword"),
    ],
)
def test_a_configuration_of_something_else_is_refused(tmp_path, content, said):
    files = tower_folder(tmp_path / "tower")
    files[CONFIG].write_text(content)
    with pytest.raises(InputError, match=said) as error:
        ClipScore(files, CPU)
    assert "\n" not in str(error.value)


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
    """As the published file is; the scores are those of the rounded weights, computed in float32."""
    monkeypatch.setattr(HPSv2, "architecture", TINY_HPS)
    whole = randomised(open_clip.CLIP(**copy.deepcopy(TINY_HPS))).state_dict()
    found = {}
    for kind, weights in (
        ("half", {k: v.half() for k, v in whole.items()}),
        ("rounded", {k: v.half().float() for k, v in whole.items()}),
    ):
        torch.save({"state_dict": weights}, tmp_path / HPS)
        reward = HPSv2({HPS: tmp_path / HPS}, CPU)
        assert {value.dtype for value in reward.tower.model.state_dict().values()} == {torch.float32}
        found[kind] = reward.score(media_of(SIZES[0]), prompts(TEXTS))
    assert torch.equal(found["half"], found["rounded"]) and found["half"].dtype == torch.float32
    torch.save({"state_dict": whole}, tmp_path / HPS)
    exact = HPSv2({HPS: tmp_path / HPS}, CPU).score(media_of(SIZES[0]), prompts(TEXTS))
    assert 0 < (found["half"] - exact).abs().max() < 0.01


def test_hpsv2_is_open_clips_vit_h_with_gelu():
    assert HPSv2.architecture == open_clip.get_model_config("ViT-H-14")


def test_hpsv2_files_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(HPSv2, "architecture", TINY_HPS)
    state = open_clip.CLIP(**copy.deepcopy(TINY_HPS)).state_dict()
    del state["visual.ln_post.bias"]
    torch.save({"state_dict": state}, tmp_path / HPS)
    with pytest.raises(InputError, match="reward 'hpsv2': .* does not fit: it lacks visual.ln_post.bias"):
        HPSv2({HPS: tmp_path / HPS}, CPU)
    (tmp_path / HPS).write_bytes(b"half a file")
    with pytest.raises(InputError, match="reward 'hpsv2': .* cannot be read .*; fetch it again"):
        HPSv2({HPS: tmp_path / HPS}, CPU)


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


def test_the_head_of_another_tower_is_refused(tmp_path):
    torch.save(head_of(24), tmp_path / HEAD)
    with pytest.raises(InputError, match=r"does not fit: it has another shape of layers.0.weight \(1024, 24\) for \(1024, 16\)"):
        AestheticV2(tower_folder(tmp_path / "tower") | {HEAD: tmp_path / HEAD}, CPU)


def test_the_registry_builds_them_from_a_folder(tmp_path, monkeypatch):
    (tmp_path / "clip_b32").mkdir()
    tower_folder(tmp_path / "clip_b32")
    assert build_reward("clip_b32", files=tmp_path).name == "clip_b32"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(InputError, match="reward 'hpsv2': HPS_v2.1_compressed.pt of xswu/HPSv2 is neither in"):
        build_reward("hpsv2", files=tmp_path)
    names = ["hpsv2", "clip", "clip_dfn5b", "clip_b32", "aesthetic_v2", "pickscore"]
    assert [find_reward(name).card.name for name in names] == names == [name for name in REGISTRY if name in names]
