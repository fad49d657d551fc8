"""PickScore: a CLIP ViT-H/14 fine-tuned on the choices of Pick-a-Pic's users, in the layout of transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from otca.errors import InputError, one_line
from otca.rewards.pixels import Preprocess
from otca.rewards.published import Card, HubFile, PublishedReward, load_whole, read_weights
from otca.rewards.tower import cosines
from otca.types import Prompt

CONFIG, WEIGHTS, VOCABULARY, MERGES = "config.json", "model.safetensors", "vocab.json", "merges.txt"
HUB, REVISION = "yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800"
WORDS, WORDS_REVISION = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c"
WEIGHTS_HASH = "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e"
TOKENS = 77
"""Length that texts are padded to and cut at."""


class PickScore(PublishedReward):
    """exp(logit scale)·cosine of picture and prompt, about 22; the mean over the frames of a video.

    DanceGRPO prints the cosine alone, about 0.22, and Flow-GRPO divides this by 26: say which one a table holds.

    Hub: yuvalkirstain/PickScore_v1 at a4e4367c (its card states no licence, the code is MIT; model.safetensors has 3.94 GB and
    the SHA-256 ef31ef6f…5f18d52e), with the tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K at 1c2b8495 (MIT).
    Preprocessing is that of transformers' CLIP on Pillow pictures: the shortest side to 224, bicubic, centre crop.
    """

    card = Card(
        name="pickscore",
        measures="human preference of a picture for its prompt (PickScore v1)",
        modality="both",
        range=(-100.0, 100.0),
        source="Kirstain et al. 2023, arXiv:2305.01569; github.com/yuvalkirstain/PickScore",
        licence="none stated on the hub; MIT in the code's repository",
        memory=3.9,
        files=(
            HubFile(HUB, CONFIG, 5_000, REVISION),
            HubFile(HUB, WEIGHTS, 3_940_000_000, REVISION, WEIGHTS_HASH),
            HubFile(WORDS, VOCABULARY, 860_000, WORDS_REVISION),
            HubFile(WORDS, MERGES, 520_000, WORDS_REVISION),
        ),
    )

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        """Load weights and tokenizer. Raises InputError for what does not fit."""
        self.device = device
        self.model = _read_model(self.name, files[CONFIG], files[WEIGHTS]).to(device).eval()
        self.tokenizer = _read_tokenizer(self.name, files[VOCABULARY], files[MERGES])
        side = self.model.config.vision_config.image_size
        self.preprocess = Preprocess(side, side, crop="transformers")

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores, float32 (B,), of media (B, F, 3, H, W) in [0, 1] and their prompts."""
        return cosines(self._images, self._texts, media_BFCHW, prompts) * self.model.logit_scale.detach().exp()

    def _images(self, media_NCHW: torch.Tensor) -> torch.Tensor:
        features = self.model.get_image_features(pixel_values=self.preprocess(media_NCHW.to(self.device)))
        return nn.functional.normalize(features.pooler_output, dim=-1)

    def _texts(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        return nn.functional.normalize(self.model.get_text_features(**tokens.to(self.device)).pooler_output, dim=-1)


def _read_model(reward: str, config: Path, path: Path) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    try:
        model = CLIPModel(CLIPConfig.from_dict(json.loads(config.read_text())))
    except Exception as error:  # transformers raises many kinds
        raise InputError(
            f"reward {reward!r}: {config} is not the configuration of a CLIPModel ({one_line(error)}); fetch it again"
        ) from error
    weights = read_weights(reward, path)
    counted = [key for key in weights if key.endswith("embeddings.position_ids")]  # 0, 1, 2, …, which old files hold as well
    load_whole(reward, model, {key: value for key, value in weights.items() if key not in counted}, path)
    return model


def _read_tokenizer(reward: str, vocabulary: Path, merges: Path):
    from transformers import CLIPTokenizer

    try:
        return CLIPTokenizer(vocab=str(vocabulary), merges=str(merges))
    except Exception as error:  # the tokenizers library raises a bare Exception
        raise InputError(
            f"reward {reward!r}: {vocabulary} and {merges} make no tokenizer ({one_line(error)}); fetch them again"
        ) from error
