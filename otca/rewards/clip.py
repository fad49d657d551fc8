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
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD, preprocessed
from otca.rewards.published import Card, HubFile, PictureReward, five_layers, load_whole, read_weights

CONFIG = "open_clip_config.json"
HEAD = "sac+logos+ava1-l14-linearMSE.pth"
HPS = "HPS_v2.1_compressed.pt"


def _tower_files(repo: str, revision: str, weights: str, size: int, sha256: str) -> tuple[HubFile, HubFile]:
    """Configuration and weights of a tower of open_clip."""
    return HubFile(repo, CONFIG, 700, revision), HubFile(repo, weights, size, revision, sha256)


OPENAI_L14 = _tower_files(
    "timm/vit_large_patch14_clip_224.openai",
    "18d0535469bb561bf468d76c1d73aa35156c922b",
    "open_clip_model.safetensors",
    1_710_517_724,
    "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
)
"""CLIP ViT-L/14 of OpenAI."""


class _Tower(PictureReward):
    """Cosine of picture and text; a subclass sets ``model``, ``tokenize``, ``transform``, ``side`` and ``device``."""

    def _images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Unit features (N, D)."""
        return self.model.encode_image(preprocessed(pictures, self.transform, self.side).to(self.device), normalize=True)

    def _read(self, texts: list[str]) -> torch.Tensor:
        """Unit features (N, D) of texts, cut at the tower's context length."""
        return self.model.encode_text(self.tokenize(texts).to(self.device), normalize=True)

    def _score(self, pictures: Sequence[Image.Image], texts: Sequence[torch.Tensor]) -> torch.Tensor:
        return (self._images(pictures) * torch.stack(list(texts))).sum(-1)

    def _open(self, files: Mapping[str, Path], device: torch.device) -> None:
        """The tower in the folder of its configuration, which decides architecture, activation and preprocessing."""
        path = files[CONFIG]
        config = json.loads(path.read_text())["model_cfg"]
        foreign = "multimodal_cfg" if "multimodal_cfg" in config else config["text_cfg"].get("hf_model_name")
        if foreign or "timm_model_name" in config["vision_cfg"]:  # what open_clip would fetch from the network
            raise InputError(f"reward {self.name!r}: the tower of {path} has parts of other libraries, which are not supported")
        model, self.transform = open_clip.create_model_from_pretrained(
            f"local-dir:{path.parent}", device=device, precision="fp32"
        )
        weights = {key: value for key, value in model.state_dict().items()}
        self.model = load_whole(f"reward {self.name!r}", model, weights, path.parent)
        self.tokenize = open_clip.get_tokenizer(f"local-dir:{path.parent}")
        self.side, self.device, self.config = max(open_clip.model.to_2tuple(model.visual.image_size)), device, config


class HPSv2(_Tower):
    """HPSv2.1: cosine of a CLIP ViT-H/14 (GELU) fine-tuned on human choices, usually 0.2 to 0.35, without logit scale.

    Its file holds float16, which is loaded into a float32 network. The published code makes a float tensor of the picture and
    resizes that: the longest side to 224, bicubic, neither rounded nor clamped, then black padding. It therefore depends on
    torchvision: from 0.17 on, as here and as installed by DanceGRPO and Flow-GRPO, with antialiasing. It runs under autocast,
    this in float32.
    """

    card = Card(
        name="hpsv2",
        measures="human preference of a picture for its prompt (HPSv2.1)",
        modality="both",
        range=(-1.0, 1.0),
        source="Wu et al. 2023, arXiv:2306.09341; github.com/tgxs002/HPSv2",
        licence="Apache-2.0",
        memory=3.9,
        files=(
            HubFile(
                "xswu/HPSv2",
                HPS,
                1_972_490_005,
                "697403c78157020a1ae59d23f111aa58ced35b0a",
                "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
            ),
        ),
    )
    architecture: ClassVar[dict[str, Any]] = open_clip.get_model_config("ViT-H-14")
    tokenize = staticmethod(open_clip.tokenize)
    side = 224

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        who = f"reward {self.name!r}"
        model = open_clip.CLIP(**self.architecture)
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

    Another tower is another card: a subclass of three lines, such as those below. Numbers of two towers cannot be compared:
    print `protocol` beside them.
    """

    card = Card(
        name="clip",
        measures="agreement of picture and prompt (CLIP ViT-L/14 of OpenAI)",
        modality="both",
        range=(-1.0, 1.0),
        source="Hessel et al. 2021, arXiv:2104.08718; Radford et al. 2021, arXiv:2103.00020",
        licence="Apache-2.0 (OpenAI's release: MIT)",
        memory=1.7,
        files=OPENAI_L14,
    )

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

    card = Card(
        name="clip_dfn5b",
        measures="agreement of picture and prompt (CLIP ViT-H/14-378 DFN5B)",
        modality="both",
        range=(-1.0, 1.0),
        source="Fang et al. 2023, arXiv:2309.17425; Hessel et al. 2021, arXiv:2104.08718",
        licence="apple-amlr (Apple's own, for research; LICENSE in the hub repository)",
        memory=3.9,
        files=_tower_files(
            "apple/DFN5B-CLIP-ViT-H-14-378",
            "01b771ed0d1395ca5ffdd279897d665ebe00dfd2",
            "open_clip_pytorch_model.bin",
            3_947_081_637,
            "c07a17b547d461c60a3cce5062b26bf8545b13de602c4c59d8490361eb716033",
        ),
    )


class ClipScoreB32(ClipScore):
    """CLIP score with OpenAI's ViT-B/32, the tower of the CLIPScore paper.

    The paper prints 2.5·max(cosine, 0) and puts "A photo depicts" before a text; this is the cosine with the bare text.
    """

    card = Card(
        name="clip_b32",
        measures="agreement of picture and prompt (CLIP ViT-B/32 of OpenAI)",
        modality="both",
        range=(-1.0, 1.0),
        source="Hessel et al. 2021, arXiv:2104.08718; Radford et al. 2021, arXiv:2103.00020",
        licence="Apache-2.0 (OpenAI's release: MIT)",
        memory=0.6,
        files=_tower_files(
            "timm/vit_base_patch32_clip_224.openai",
            "a6f597a30f7b82c51704746581f9a4e41421e878",
            "open_clip_model.safetensors",
            605_143_284,
            "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        ),
    )


class AestheticV2(_Tower):
    """LAION's aesthetic predictor v2: five linear layers on the unit features of OpenAI's CLIP ViT-L/14; about 1 to 10.

    The hub's file is a copy of that of github.com/christophschuhmann/improved-aesthetic-predictor. The prompt is not looked at.
    """

    card = Card(
        name="aesthetic_v2",
        measures="how much a picture would be liked, whatever its prompt (LAION aesthetic v2)",
        modality="both",
        range=(1.0, 10.0),
        source="Schuhmann 2022, github.com/christophschuhmann/improved-aesthetic-predictor",
        licence="Apache-2.0",
        memory=1.7,
        files=(
            *OPENAI_L14,
            HubFile(
                "camenduru/improved-aesthetic-predictor",
                HEAD,
                3_714_759,
                "7b2449be1264fcd9a1cf92e3d30dd29af989c836",
                "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
            ),
        ),
    )

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

    DanceGRPO prints the cosine alone, about 0.22, and Flow-GRPO divides this by 26: say which one a table holds. The tokenizer is
    that of laion/CLIP-ViT-H-14-laion2B-s32B-b79K (MIT); preprocessing is transformers' on Pillow pictures, which are made RGB
    first: the shortest side to 224, bicubic, centre crop.
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
            HubFile("yuvalkirstain/PickScore_v1", "config.json", 5_000, "a4e4367c6dfa7288a00c550414478f865b875800"),
            HubFile(
                "yuvalkirstain/PickScore_v1",
                "model.safetensors",
                3_940_000_000,
                "a4e4367c6dfa7288a00c550414478f865b875800",
                "ef31ef6fc5ff4d9bb90dd232df4e145887ba62c5a03aa2841415f8c25f18d52e",
            ),
            *(
                HubFile("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", name, size, "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
                for name, size in (("vocab.json", 860_000), ("merges.txt", 520_000))
            ),
        ),
    )

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        who, path = f"reward {self.name!r}", files["model.safetensors"]
        model = CLIPModel(CLIPConfig.from_dict(json.loads(files["config.json"].read_text())))
        counted = "embeddings.position_ids"  # 0, 1, 2, …, which old files hold as well
        weights = {key: value for key, value in read_weights(who, path).items() if not key.endswith(counted)}
        self.model, self.device = load_whole(who, model, weights, path).to(device), device
        self.tokenizer = CLIPTokenizer(vocab=str(files["vocab.json"]), merges=str(files["merges.txt"]))
        self.processor, self.side = CLIPImageProcessorPil(), model.config.vision_config.image_size

    def transform(self, picture: Image.Image) -> torch.Tensor:
        """A network input (3, 224, 224)."""
        return self.processor(picture.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    def _images(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        pixel_NCHW = preprocessed(pictures, self.transform, self.side).to(self.device)
        return nn.functional.normalize(self.model.get_image_features(pixel_values=pixel_NCHW).pooler_output, dim=-1)

    def _read(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
        return nn.functional.normalize(self.model.get_text_features(**tokens.to(self.device)).pooler_output, dim=-1)

    def _score(self, pictures: Sequence[Image.Image], texts: Sequence[torch.Tensor]) -> torch.Tensor:
        return super()._score(pictures, texts) * self.model.logit_scale.exp()
