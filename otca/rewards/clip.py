"""Scorers on CLIP towers: HPSv2.1, CLIP score with any tower of open_clip, LAION aesthetic v2, PickScore.

Pictures are preprocessed by the library that published the tower, on Pillow's pictures in their own mode. All scores are computed
in float32. Axes: N pictures, D features.
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
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from otca.errors import InputError
from otca.files import read_object
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.rewards.published import CARDS, PictureReward, five_layers, load_whole, read_weights

CONFIG = "open_clip_config.json"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
HPS = "HPS_v2.1_compressed.pt"


class _Tower(PictureReward):
    """Cosine of picture and text; a subclass sets ``model``, ``tokenize``, ``transform`` and ``device``."""

    def _images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Unit features (N, D)."""
        return self.model.encode_image(torch.stack(list(map(self.transform, pictures))).to(self.device), normalize=True)

    def _read(self, texts: list[str]) -> torch.Tensor:
        """Unit features (N, D) of texts, cut at the tower's context length."""
        return self.model.encode_text(self.tokenize(texts).to(self.device), normalize=True)

    def _score(self, pictures: Sequence[Image.Image], texts: Sequence[torch.Tensor]) -> torch.Tensor:
        return (self._images(pictures) * torch.stack(list(texts))).sum(-1)

    def _open(self, files: Mapping[str, Path], device: torch.device) -> None:
        """The tower in the folder of its configuration, which decides architecture, activation and preprocessing."""
        path = files[CONFIG]
        config = read_object(path, f"reward {self.name!r}").get("model_cfg")
        if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
            raise InputError(f"reward {self.name!r}: {path} has no model_cfg of a CLIP in it; fetch it again")
        foreign = "multimodal_cfg" if "multimodal_cfg" in config else config["text_cfg"].get("hf_model_name")
        if foreign or "timm_model_name" in config["vision_cfg"]:  # what open_clip would fetch from the network
            raise InputError(f"reward {self.name!r}: the tower of {path} has parts of other libraries, which are not supported")
        model, self.transform = open_clip.create_model_from_pretrained(
            f"local-dir:{path.parent}", device=device, precision="fp32"
        )
        self.model = load_whole(f"reward {self.name!r}", model, dict(model.state_dict()), path.parent)
        self.tokenize = open_clip.get_tokenizer(f"local-dir:{path.parent}")
        self.device, self.config = device, config


class HPSv2(_Tower):
    """HPSv2.1: cosine of a CLIP ViT-H/14 (GELU) fine-tuned on human choices, usually 0.2 to 0.35, without logit scale.

    The published code resizes a float tensor of the picture: the longest side to 224, bicubic, neither rounded nor clamped, then
    black padding. It therefore depends on torchvision: from 0.17 on, as here, DanceGRPO and Flow-GRPO have it, with antialiasing.
    """

    card = CARDS["hpsv2"]
    architecture: ClassVar[dict[str, Any]] = open_clip.get_model_config("ViT-H-14")
    tokenize = staticmethod(open_clip.tokenize)
    side = 224

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        who, model = f"reward {self.name!r}", open_clip.CLIP(**self.architecture)
        self.model = load_whole(who, model, read_weights(who, files[HPS]), files[HPS]).to(device)
        self.device = device

    def transform(self, picture: Image.Image) -> torch.Tensor:
        """The whole picture in a black square."""
        pixel_CHW = transforms.to_tensor(picture.convert("RGB"))
        scale = self.side / max(pixel_CHW.shape[1:])
        size = [round(length * scale) for length in pixel_CHW.shape[1:]]
        pixel_CHW = transforms.resize(pixel_CHW, size, InterpolationMode.BICUBIC)
        below, right = (self.side - length for length in size)
        padded_CHW = transforms.pad(pixel_CHW, [right // 2, below // 2, right - right // 2, below - below // 2])
        return transforms.normalize(padded_CHW, CLIP_MEAN, CLIP_STD)


class ClipScore(_Tower):
    """CLIP score: cosine of picture and prompt, neither scaled nor clipped at 0; with this tower about 0.29 to 0.31.

    Another tower is another card, as below. Numbers of two towers cannot be compared: print `protocol` beside them.
    """

    card = CARDS["clip"]

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        self._open(files, device)

    @property
    def protocol(self) -> dict[str, str]:
        """Which tower the cosines are of, and what it sees."""
        return {"backbone": f"open_clip, files of {self.revision}", "preprocessing": str(self.model.visual.preprocess_cfg)}


class ClipScoreDfn5b(ClipScore):
    """CLIP score with Apple's DFN5B ViT-H/14 at 378 pixels; about 0.38 to 0.41.

    open_clip's tag ``dfn5b`` squashes pictures that are not square, while code that gives open_clip the .bin file by path crops
    them; here the configuration decides.
    """

    card = CARDS["clip_dfn5b"]


class ClipScoreB32(ClipScore):
    """CLIP score with OpenAI's ViT-B/32, the tower of the CLIPScore paper.

    The paper prints 2.5·max(cosine, 0) and puts "A photo depicts" before a text; this is the cosine with the bare text.
    """

    card = CARDS["clip_b32"]


class AestheticV2(_Tower):
    """LAION's aesthetic predictor v2: five linear layers on the unit features of OpenAI's CLIP ViT-L/14, whatever the prompt."""

    card = CARDS["aesthetic_v2"]

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        self._open(files, device)
        who = f"reward {self.name!r}"
        head = nn.ModuleDict({"layers": five_layers(self.config["embed_dim"])})
        self.head = load_whole(who, head, read_weights(who, files[HEAD]), files[HEAD]).to(device)

    def _read(self, texts: list[str]) -> list[str]:
        return texts

    def _score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        return self.head["layers"](self._images(pictures)).squeeze(-1)


class PickScore(_Tower):
    """exp(logit scale)·cosine of picture and prompt, about 22; the mean over the frames of a video.

    DanceGRPO prints the cosine alone, about 0.22, and Flow-GRPO divides this by 26: say which one a table holds. Preprocessing is
    transformers' on Pillow pictures, which are made RGB first: the shortest side to 224, bicubic, centre crop.
    """

    card = CARDS["pickscore"]

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        who, path = f"reward {self.name!r}", files["model.safetensors"]
        model = CLIPModel(CLIPConfig.from_dict(json.loads(files["config.json"].read_text())))
        counted = "embeddings.position_ids"  # 0, 1, 2, …, which old files hold as well
        weights = {key: value for key, value in read_weights(who, path).items() if not key.endswith(counted)}
        self.model, self.device = load_whole(who, model, weights, path).to(device), device
        self.tokenizer = CLIPTokenizer(vocab=str(files["vocab.json"]), merges=str(files["merges.txt"]))
        self.processor = CLIPImageProcessorPil()

    def _images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixel_NCHW = self.processor([p.convert("RGB") for p in pictures], return_tensors="pt")["pixel_values"].to(self.device)
        return nn.functional.normalize(self.model.get_image_features(pixel_values=pixel_NCHW).pooler_output, dim=-1)

    def _read(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return nn.functional.normalize(self.model.get_text_features(**tokens.to(self.device)).pooler_output, dim=-1)

    def _score(self, pictures: Sequence[Image.Image], texts: Sequence[torch.Tensor]) -> torch.Tensor:
        return super()._score(pictures, texts) * self.model.logit_scale.exp()
