"""Scorers on CLIP towers of open_clip: HPSv2.1, CLIP score with any tower, LAION aesthetic v2.

A tower makes unit features of pictures and of texts (`otca.rewards.tower`). All scores are computed in float32. Axes: B samples,
F frames, N pictures.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from otca.rewards.pixels import Preprocess
from otca.rewards.published import Card, HubFile, PublishedReward, by_frames, five_layers, load_whole, read_weights
from otca.rewards.tower import CHUNK, CONFIG, Tower, cosines, read_tower
from otca.types import Prompt

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


class HPSv2(PublishedReward):
    """HPSv2.1: cosine of a CLIP ViT-H/14 (GELU) fine-tuned on human choices, usually 0.2 to 0.35, without logit scale.

    Hub: xswu/HPSv2 at 697403c7; Apache-2.0. HPS_v2.1_compressed.pt has 1,972,490,005 bytes, as its weights are float16, and the
    SHA-256 c57a38fb…998c9837; they are loaded into a float32 network. The published code makes a float tensor of the picture
    and resizes that: the longest side to 224, bicubic, neither rounded nor clamped, then black padding. It therefore depends on
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
    architecture: ClassVar[dict[str, Any]] = {
        "embed_dim": 1024,
        "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
    }

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        """Load the weights. Raises InputError for what does not fit."""
        import open_clip

        model = open_clip.CLIP(**copy.deepcopy(self.architecture))
        load_whole(self.name, model, read_weights(self.name, files[HPS]), files[HPS])
        preprocess = Preprocess(fit="longest", rounded=False)
        self.tower = Tower(
            model.to(device).eval(), open_clip.tokenize, preprocess, device, "ViT-H-14", self.architecture["embed_dim"]
        )

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Cosines, float32 (B,), of media (B, F, 3, H, W) in [0, 1] and their prompts."""
        return cosines(self.tower.images, self.tower.texts, media_BFCHW, prompts)


class ClipScore(PublishedReward):
    """CLIP score: cosine of picture and prompt, neither scaled nor clipped at 0; with this tower about 0.29 to 0.31.

    Hub: timm/vit_large_patch14_clip_224.openai at 18d05354 (1,710,517,724 bytes, SHA-256 9ce2e8a8…b7cd207e); Apache-2.0
    (OpenAI's release: MIT). Another tower is another card: a subclass of three lines, such as those below. Numbers of two
    towers cannot be compared: print `protocol` beside them.
    """

    card = Card(
        name="clip",
        measures="agreement of picture and prompt (CLIP ViT-L/14 of OpenAI)",
        modality="both",
        range=(-1.0, 1.0),
        source="Hessel et al. 2021, arXiv:2104.08718; Radford et al. 2021, arXiv:2103.00020",
        licence="Apache-2.0",
        memory=1.7,
        files=OPENAI_L14,
    )

    def __init__(self, files: Mapping[str, Path], device: torch.device):
        """Load the tower. Raises InputError for one that does not fit or cannot be reproduced."""
        self.tower = read_tower(self.name, files, device)

    @property
    def protocol(self) -> dict[str, str]:
        """Which tower the cosines are of, and what it sees."""
        seen = self.tower.preprocess
        return {
            "backbone": f"open_clip {self.tower.name}, files of {self.revision}",
            "resolution": f"{seen.height}×{seen.width}, {seen.fit}, {seen.interpolation}",
        }

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Cosines, float32 (B,), of media (B, F, 3, H, W) in [0, 1] and their prompts."""
        return cosines(self.tower.images, self.tower.texts, media_BFCHW, prompts)


class ClipScoreDfn5b(ClipScore):
    """CLIP score with Apple's DFN5B ViT-H/14 at 378 pixels; about 0.38 to 0.41.

    Hub: apple/DFN5B-CLIP-ViT-H-14-378 at 01b771ed; Apple's own licence. Its weights are a .bin file (3,947,081,637 bytes,
    SHA-256 c07a17b5…eb716033). open_clip's tag ``dfn5b`` squashes pictures that are not square, while code that gives open_clip
    the .bin file by path crops them; here the configuration decides.
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
    Hub: timm/vit_base_patch32_clip_224.openai at a6f597a3 (605,143,284 bytes, SHA-256 e6d1bd77…3a2b7c31); Apache-2.0 (OpenAI's
    release: MIT).
    """

    card = Card(
        name="clip_b32",
        measures="agreement of picture and prompt (CLIP ViT-B/32 of OpenAI)",
        modality="both",
        range=(-1.0, 1.0),
        source="Hessel et al. 2021, arXiv:2104.08718; Radford et al. 2021, arXiv:2103.00020",
        licence="Apache-2.0",
        memory=0.6,
        files=_tower_files(
            "timm/vit_base_patch32_clip_224.openai",
            "a6f597a30f7b82c51704746581f9a4e41421e878",
            "open_clip_model.safetensors",
            605_143_284,
            "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        ),
    )


class AestheticV2(PublishedReward):
    """LAION's aesthetic predictor v2: five linear layers on the unit features of OpenAI's CLIP ViT-L/14; about 1 to 10.

    Hub: camenduru/improved-aesthetic-predictor at 7b2449be, a copy of the file in the GitHub repository
    christophschuhmann/improved-aesthetic-predictor (3,714,759 bytes, SHA-256 21dd590f…bff0f1e0); Apache-2.0. Its tower:
    timm/vit_large_patch14_clip_224.openai at 18d05354 (SHA-256 9ce2e8a8…b7cd207e); Apache-2.0 (OpenAI's release: MIT). The
    prompt is not looked at.
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
        """Load tower and head. Raises InputError for what does not fit."""
        self.tower = read_tower(self.name, files, device)
        self.head = nn.ModuleDict({"layers": five_layers(self.tower.features)})
        load_whole(self.name, self.head, read_weights(self.name, files[HEAD]), files[HEAD])
        self.head.to(device).eval()

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Scores, float32 (B,), of media (B, F, 3, H, W) in [0, 1]."""

        def score(media_NCHW: torch.Tensor, of: list[str]) -> torch.Tensor:
            return self.head["layers"](self.tower.images(media_NCHW)).squeeze(-1)

        return by_frames(score, media_BFCHW, [prompt.text for prompt in prompts], CHUNK)
