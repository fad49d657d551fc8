"""VBench's aesthetic and imaging quality: each the mean over all frames of a published scorer of pictures.

Weights are local files; each is refused unless its SHA-256 is on record. A column has VBench's name with the very files that
VBench uses; with timm's copy of CLIP, which was not compared with OpenAI's, it is `aesthetic_quality_timm`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from eval.metrics.encoders import CLIP_L14, clip_tower
from eval.metrics.musiq import Musiq, MusiqSizes
from eval.metrics.weights import VBenchFile
from otca.errors import InputError
from otca.rewards.published import CARDS, load_whole, read_weights

HEAD = "sa_0_4_vit_l_14_linear.pth"
HEAD_FILE = VBenchFile(
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba", "github.com/LAION-AI/aesthetic-predictor"
)
CLIP_HUB_SHA256 = CARDS["clip"].files[1].sha256  # of timm's copy of CLIP ViT-L/14
FEATURES = 768  # of CLIP ViT-L/14
MUSIQ_FILE = VBenchFile(
    "358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50",
    "musiq_spaq_ckpt-358bb6af.pth of huggingface.co/chaofengc/IQA-PyTorch-Weights",
)
MUSIQ_SIZES = MusiqSizes()
MAX_SIDE = 512  # longer side beyond which VBench shrinks a frame for MUSIQ
CHUNK = 8  # frames a forward pass of MUSIQ: 450 patches each at 512×512


class AestheticQuality:
    """`aesthetic_quality`: LAION's first aesthetic predictor / 10, about 0.3 to 0.7.

    A linear head (MIT licence) on the normalised image features of OpenAI's CLIP ViT-L/14 (MIT). ``folder`` holds `HEAD` and a
    file of CLIP, OpenAI's ViT-L-14.pt or, for `aesthetic_quality_timm`, open_clip_model.safetensors of
    timm/vit_large_patch14_clip_224.openai at 18d05354 (Apache-2.0). Raises InputError for what is missing or another file.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        path, who = folder / HEAD, "metric 'aesthetic_quality'"
        self.column, _ = HEAD_FILE.column("aesthetic_quality", path)
        self.head = load_whole(who, nn.Linear(FEATURES, 1), read_weights(who, path), path)
        self.encode, digest = clip_tower(self.column, folder, CLIP_L14, device)
        if digest not in (CLIP_L14.sha256, CLIP_HUB_SHA256):
            raise InputError(f"{who}: the CLIP of {folder} has SHA-256 {digest[:16]}…; fetch {CLIP_L14.source}")
        self.column += "_timm" if digest == CLIP_HUB_SHA256 else ""

    @torch.inference_mode()
    def score(self, video_FCHW: torch.Tensor, text: str = "") -> float:
        """Mean over the frames (F, 3, H, W) in [0, 1]; the text is not looked at."""
        return float(self.head(functional.normalize(self.encode(video_FCHW), dim=-1)).mean() / 10)


class ImagingQuality:
    """`imaging_quality`: MUSIQ trained on SPAQ / 100, 0 to 1, higher is sharper, cleaner and better exposed.

    ``weights``: pyiqa's copy of the published ones (Google Research, Apache-2.0). Frames whose longer side exceeds 512 are shrunk
    to it, bilinear without antialiasing. Raises InputError for a file that is missing or another.
    """

    def __init__(self, weights: Path, device: str | torch.device = "cpu"):
        who, self.device = "metric 'imaging_quality'", device
        self.column, _ = MUSIQ_FILE.column("imaging_quality", weights)
        self.model = load_whole(who, Musiq(MUSIQ_SIZES), read_weights(who, weights), weights).to(device)

    @torch.inference_mode()
    def score(self, video_FCHW: torch.Tensor, text: str = "") -> float:
        """Mean over the frames (F, 3, H, W) in [0, 1]; the text is not looked at."""
        height, width = video_FCHW.shape[2:]
        scale, total = MAX_SIDE / max(height, width), 0.0
        for frame_NCHW in video_FCHW.float().to(self.device).split(CHUNK):
            if scale < 1:
                size = int(scale * height), int(scale * width)
                frame_NCHW = functional.interpolate(frame_NCHW, size, mode="bilinear", antialias=False)
            total += float(self.model(frame_NCHW).sum())
        return total / len(video_FCHW) / 100
