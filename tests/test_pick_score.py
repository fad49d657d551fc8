"""PickScore against transformers' CLIP on the saved picture."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from otca.errors import InputError
from otca.rewards.pick_score import PickScore
from tests.samples import LONG, SIZES, TEXTS, media_of, prompts, randomised, saved

CPU = torch.device("cpu")


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


def test_pickscore_of_a_video_is_the_mean_of_its_frames(tmp_path, vocabulary):
    reward, media = PickScore(pickscore_files(tmp_path, vocabulary), CPU), media_of(SIZES[0], frames=3)
    frames = torch.stack([reward.score(media[:, i : i + 1], prompts(TEXTS)) for i in range(3)])
    assert torch.allclose(reward.score(media, prompts(TEXTS)), frames.mean(0), atol=1e-5)


def test_pickscore_tokens_are_clips(tmp_path, vocabulary):
    tokens = PickScore(pickscore_files(tmp_path, vocabulary), CPU).tokenizer
    plain = ["A red cube, on two spheres!", LONG]
    found = tokens(plain, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    expected = open_clip.tokenize(plain)
    assert found.shape == expected.shape and torch.equal(found[expected != 0], expected[expected != 0])


def test_pickscore_files_that_do_not_fit_are_refused(tmp_path, vocabulary):
    files = pickscore_files(tmp_path, vocabulary, change=lambda weights: weights.pop("logit_scale"))
    with pytest.raises(InputError, match=r"reward 'pickscore': .*model.safetensors does not fit: it lacks logit_scale$"):
        PickScore(files, CPU)
    torn = tmp_path / "torn.txt"
    torn.write_text("{")
    with pytest.raises(InputError, match="torn.txt is not the configuration of a CLIPModel"):
        PickScore(files | {"config.json": torn}, CPU)
    files = pickscore_files(tmp_path, vocabulary)
    with pytest.raises(InputError, match=r"torn.txt and .*merges.txt make no tokenizer"):
        PickScore(files | {"vocab.json": torn}, CPU)
