"""ImageReward-v1.0: how people would rank pictures of a prompt, from a BLIP whose text encoder looks at the picture.

A ViT-L/16 reads the picture; a BERT that attends to its patches in every layer reads the prompt; a linear head makes one number
of the first token, which is standardised. Axes: N pictures, L tokens or patches, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from otca.errors import InputError
from otca.rewards.pixels import Preprocess
from otca.rewards.published import Card, HubFile, PublishedReward, by_frames, five_layers, load_whole, read_weights
from otca.types import Prompt

NAME = "image_reward"
HUB, REVISION = "THUDM/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72"
WEIGHTS_HASH = "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"
BERT, BERT_REVISION = "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's number over the authors' pictures; scores are standardised by them."""

LENGTH = 35
"""Tokens of a prompt, [CLS] and [SEP] among them; what is beyond is cut."""

ADDED = ["[DEC]", "[ENC]"]
"""Tokens that BLIP appends to BERT's vocabulary. ImageReward puts neither into a text: a prompt must spell one to use it."""

CHUNK = 32
"""Pictures that the network sees at a time."""

TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "pad_token_id",
)
"""What med_config.json says of the text encoder; its ``encoder_width`` is not read, the picture's width takes its place."""

UNUSED = (
    "blip.vision_proj.weight",
    "blip.vision_proj.bias",
    "blip.text_proj.weight",
    "blip.text_proj.bias",
    "blip.text_encoder.embeddings.position_ids",
)
"""In the file, but not in the score: what is left of BLIP's contrastive training, and the numbers 0 to 511."""

RENAMED = (
    (".cls_token", ".embeddings.class_embedding"),
    (".pos_embed", ".embeddings.position_embedding"),
    (".patch_embed.proj.", ".embeddings.patch_embedding."),
    (".blocks.", ".encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
    (".norm.", ".post_layernorm."),
)
"""Salesforce's names of the vision tower's parts, and transformers' names of the same."""


class ImageReward(PublishedReward):
    """ImageReward-v1.0 (arXiv:2304.05977), standardised: about 0 on average, most pictures between −2 and 2.

    Weights: hub ``THUDM/ImageReward`` at 5736be03 (1,786,880,927 bytes, SHA-256 d71dc8d4…9de561f6), Apache-2.0; vocabulary:
    ``google-bert/bert-base-uncased`` at 86b5e093, Apache-2.0. In float32, as published. A video's score is the mean over its
    frames.
    """

    card = Card(
        name=NAME,
        measures="human preference among pictures of a prompt",
        modality="both",
        range=(-2.0, 2.0),
        source="arXiv:2304.05977; github.com/THUDM/ImageReward",
        licence="Apache-2.0",
        memory=1.8,
        files=(
            HubFile(HUB, "ImageReward.pt", 1_786_880_927, REVISION, WEIGHTS_HASH),
            HubFile(HUB, "med_config.json", 500, REVISION),
            HubFile(BERT, "vocab.txt", 230_000, BERT_REVISION),
        ),
    )

    vision: ClassVar[dict[str, Any]] = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    """The vision tower, ViT-L/16; no published file tells it."""

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        """Load the files of the card onto the device. Raises InputError for what cannot be read or does not fit."""
        text = _text_settings(files["med_config.json"])
        self.tokenizer = _tokenizer(files["vocab.txt"], text["vocab_size"])
        self.network = build_network(self.vision, text)
        path = files["ImageReward.pt"]
        weights = {k: v for k, v in read_weights(NAME, path).items() if k not in UNUSED}
        load_whole(NAME, self.network, weights, path, own_name, file_name)
        self.network.eval().requires_grad_(False).to(device)
        self.device = device
        self.preprocess = Preprocess(self.vision["image_size"], self.vision["image_size"])

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Standardised preference, float32 (B,), of media (B, F, 3, H, W) in [0, 1]; higher is better."""
        return by_frames(self._pictures, media_BFCHW, [prompt.text for prompt in prompts], CHUNK)

    def _pictures(self, media_NCHW: torch.Tensor, texts: list[str]) -> torch.Tensor:
        blip = self.network["blip"]
        patch_NLD = blip["visual_encoder"](self.preprocess(media_NCHW.to(self.device))).last_hidden_state
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        text_NLD = blip["text_encoder"](
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            encoder_hidden_states=patch_NLD,
        ).last_hidden_state
        return (self.network["mlp"]["layers"](text_NLD[:, 0])[:, 0] - MEAN) / STD


def build_network(vision: Mapping[str, Any], text: Mapping[str, Any]) -> nn.ModuleDict:
    """BLIP's two encoders and the head, with random weights, named as in the file but for the inside of the vision tower.

    ``vision``, ``text``: settings of `BlipVisionConfig` and `BlipTextConfig`. A text encoder that is built as a decoder has
    cross-attention in every layer; called plainly, it masks nothing but padding.
    """
    text_config = BlipTextConfig(**text, encoder_hidden_size=vision["hidden_size"], is_decoder=True)
    encoders = {
        "visual_encoder": BlipVisionModel(BlipVisionConfig(**vision)),
        "text_encoder": BlipTextModel(text_config, add_pooling_layer=False),
    }
    return nn.ModuleDict(
        {"blip": nn.ModuleDict(encoders), "mlp": nn.ModuleDict({"layers": five_layers(text_config.hidden_size)})}
    )


def own_name(key: str) -> str:
    """The network's name of a tensor of the file."""
    if key.startswith("blip.visual_encoder."):
        for theirs, ours in RENAMED:
            key = key.replace(theirs, ours)
    return key


def file_name(key: str) -> str:
    """The file's name of a tensor of the network."""
    if key.startswith("blip.visual_encoder."):
        for theirs, ours in RENAMED:
            key = key.replace(ours, theirs)
    return key


def _text_settings(path: Path) -> dict[str, Any]:
    """The text encoder's settings in med_config.json."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {field: found[field] for field in TEXT_FIELDS}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"reward {NAME!r}: {path} is not BLIP's med_config.json ({type(error).__name__}: {error}); "
            f"fetch med_config.json of {HUB} again"
        ) from error


def _tokenizer(path: Path, size: int) -> BertTokenizer:
    """BERT's lower-casing tokenizer with BLIP's two tokens at the end, ``size`` tokens in all."""
    try:
        with open(path, encoding="utf-8") as lines:
            vocabulary = {line.rstrip("\n"): index for index, line in enumerate(lines)}
    except (OSError, ValueError) as error:
        raise InputError(f"reward {NAME!r}: {path} cannot be read ({error}); fetch vocab.txt of {BERT} again") from error
    if len(vocabulary) + len(ADDED) != size:
        raise InputError(
            f"reward {NAME!r}: {path} holds {len(vocabulary)} tokens where the text encoder knows {size - len(ADDED)} "
            f"besides {' and '.join(ADDED)}; fetch vocab.txt of {BERT} again"
        )
    tokenizer = BertTokenizer(vocab=vocabulary)
    tokenizer.add_tokens(ADDED, special_tokens=True)
    return tokenizer
