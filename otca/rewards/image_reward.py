"""ImageReward-v1.0: how people would rank pictures of a prompt, from a BLIP whose text encoder looks at the picture.

A ViT-L/16 reads the picture; a BERT that attends to its patches in every layer reads the prompt; a linear head makes one number
of the first token, which is standardised. Axes: N pictures, L tokens or patches, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import torch
from PIL import Image
from torch import nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from otca.errors import InputError
from otca.rewards.published import CARDS, PictureReward, five_layers, load_whole, read_weights

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's number over the authors' pictures; scores are standardised by them."""
LENGTH = 35  # tokens of a prompt, [CLS] and [SEP] among them; what is beyond is cut
ADDED = ["[DEC]", "[ENC]"]
"""Tokens that BLIP appends to BERT's vocabulary. ImageReward puts neither into a text: a prompt must spell one to use it."""
TEXT_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "hidden_act", "layer_norm_eps", "pad_token_id"),
)
"""What med_config.json says of the text encoder; its ``encoder_width`` is not read, the picture's width takes its place."""

UNUSED = (
    *(f"blip.{tower}_proj.{kind}" for tower in ("vision", "text") for kind in ("weight", "bias")),
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


class ImageReward(PictureReward):
    """ImageReward-v1.0 (arXiv:2304.05977), standardised: about 0 on average, most pictures between −2 and 2."""

    card = CARDS["image_reward"]
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
        who, path = f"reward {self.name!r}", files["ImageReward.pt"]
        found = json.loads(files["med_config.json"].read_text(encoding="utf-8"))
        text = {field: found[field] for field in TEXT_FIELDS}
        words = files["vocab.txt"].read_text(encoding="utf-8").splitlines()
        if len(words) + len(ADDED) != text["vocab_size"]:
            raise InputError(
                f"{who}: {files['vocab.txt']} holds {len(words)} tokens, not those of {path}; fetch that of bert-base-uncased"
            )
        self.tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
        self.tokenizer.add_tokens(ADDED, special_tokens=True)
        weights = {key: value for key, value in read_weights(who, path).items() if key not in UNUSED}
        # a text encoder built as a decoder has cross-attention in every layer; called plainly, it masks nothing but padding
        reads = BlipTextConfig(**text, encoder_hidden_size=self.vision["hidden_size"], is_decoder=True)
        sees, reads = BlipVisionModel(BlipVisionConfig(**self.vision)), BlipTextModel(reads, add_pooling_layer=False)
        head = nn.ModuleDict({"layers": five_layers(text["hidden_size"])})
        network = nn.ModuleDict({"blip": nn.ModuleDict({"visual_encoder": sees, "text_encoder": reads}), "mlp": head})
        self.network = load_whole(who, network, weights, path, own_name).to(device)
        self.device, self.transform = device, open_clip.image_transform(self.vision["image_size"], is_train=False)

    def _score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        blip = self.network["blip"]
        pixel_NCHW = torch.stack(list(map(self.transform, pictures))).to(self.device)
        patch_NLD = blip["visual_encoder"](pixel_NCHW).last_hidden_state
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
        text_NLD = blip["text_encoder"](
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            encoder_hidden_states=patch_NLD,
        ).last_hidden_state
        return (self.network["mlp"]["layers"](text_NLD[:, 0])[:, 0] - MEAN) / STD


def own_name(key: str) -> str:
    """The network's name of a tensor of the file."""
    if key.startswith("blip.visual_encoder."):
        for theirs, ours in RENAMED:
            key = key.replace(theirs, ours)
    return key
