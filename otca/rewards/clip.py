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

OPENAI_L14 = (
    HubFile("timm/vit_large_patch14_clip_224.openai", CONFIG, 0.001),
    HubFile("timm/vit_large_patch14_clip_224.openai", "open_clip_model.safetensors", 1.71),
)
"""CLIP ViT-L/14 of OpenAI."""


class HPSv2(PublishedReward):
    """HPSv2.1: cosine of a CLIP ViT-H/14 (GELU) fine-tuned on human choices, usually 0.2 to 0.35, without logit scale.

    Hub: xswu/HPSv2, main; Apache-2.0. The published code makes a float tensor of the picture and resizes that: the longest
    side to 224, bicubic, neither rounded nor clamped, then black padding. It therefore depends on torchvision: from 0.17 on,
    as here and as installed by DanceGRPO and Flow-GRPO, with antialiasing. It runs under autocast, this in float32.
    """

    card = Card(
        name="hpsv2",
        measures="human preference of a picture for its prompt (HPSv2.1)",
        medium="both",
        range=(-1.0, 1.0),
        source="Wu et al. 2023, arXiv:2306.09341; github.com/tgxs002/HPSv2",
        licence="Apache-2.0",
        memory=3.9,
        files=(HubFile("xswu/HPSv2", HPS, 3.94),),
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

    Hub: timm/vit_large_patch14_clip_224.openai, main; Apache-2.0 (OpenAI's release: MIT). Another tower is another card:
    a subclass of three lines, such as those below. Numbers of two towers cannot be compared: print `protocol` beside them.
    """

    card = Card(
        name="clip",
        measures="agreement of picture and prompt (CLIP ViT-L/14 of OpenAI)",
        medium="both",
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

    Hub: apple/DFN5B-CLIP-ViT-H-14-378, main; Apple's own licence. Its weights are a .bin file. open_clip's tag ``dfn5b``
    squashes pictures that are not square, while code that gives open_clip the .bin file by path crops them; here the
    configuration decides.
    """

    card = Card(
        name="clip_dfn5b",
        measures="agreement of picture and prompt (CLIP ViT-H/14-378 DFN5B)",
        medium="both",
        range=(-1.0, 1.0),
        source="Fang et al. 2023, arXiv:2309.17425; Hessel et al. 2021, arXiv:2104.08718",
        licence="Apple's own, see LICENSE in the hub repository",
        memory=3.9,
        files=(
            HubFile("apple/DFN5B-CLIP-ViT-H-14-378", CONFIG, 0.001),
            HubFile("apple/DFN5B-CLIP-ViT-H-14-378", "open_clip_pytorch_model.bin", 3.95),
        ),
    )


class ClipScoreB32(ClipScore):
    """CLIP score with OpenAI's ViT-B/32, the tower of the CLIPScore paper.

    The paper prints 2.5·max(cosine, 0) and puts "A photo depicts" before a text; this is the cosine with the bare text.
    Hub: timm/vit_base_patch32_clip_224.openai, main; Apache-2.0 (OpenAI's release: MIT).
    """

    card = Card(
        name="clip_b32",
        measures="agreement of picture and prompt (CLIP ViT-B/32 of OpenAI)",
        medium="both",
        range=(-1.0, 1.0),
        source="Hessel et al. 2021, arXiv:2104.08718; Radford et al. 2021, arXiv:2103.00020",
        licence="Apache-2.0",
        memory=0.6,
        files=(
            HubFile("timm/vit_base_patch32_clip_224.openai", CONFIG, 0.001),
            HubFile("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors", 0.61),
        ),
    )


class AestheticV2(PublishedReward):
    """LAION's aesthetic predictor v2: five linear layers on the unit features of OpenAI's CLIP ViT-L/14; about 1 to 10.

    Hub: camenduru/improved-aesthetic-predictor, main, a copy of the file in the GitHub repository
    christophschuhmann/improved-aesthetic-predictor (whose SHA-256 is 21dd590f…bff0f1e0); Apache-2.0. The prompt is not looked at.
    """

    card = Card(
        name="aesthetic_v2",
        measures="how much a picture would be liked, whatever its prompt (LAION aesthetic v2)",
        medium="both",
        range=(1.0, 10.0),
        source="Schuhmann 2022, github.com/christophschuhmann/improved-aesthetic-predictor",
        licence="Apache-2.0",
        memory=1.7,
        files=(*OPENAI_L14, HubFile("camenduru/improved-aesthetic-predictor", HEAD, 0.004)),
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
