"""VBench's aesthetic and imaging quality: each the mean over all frames of a published scorer of pictures.

Weights are local files; each is refused unless its SHA-256 is on record. A column has VBench's name with the very files that
VBench uses; with timm's copy of CLIP, which was not compared with OpenAI's, it is `aesthetic_quality_timm`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from eval.media import check_video
from eval.metrics.encoders import CLIP_L14, clip_tower
from eval.metrics.musiq import Musiq, MusiqSizes
from eval.metrics.weights import check_file
from otca.errors import InputError
from otca.rewards.published import CARDS, load_whole, read_weights

AESTHETIC_HEAD = "sa_0_4_vit_l_14_linear.pth"
AESTHETIC_SHA256 = "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba"
CLIP_HUB_SHA256 = CARDS["clip"].files[1].sha256
"""Of timm's copy of CLIP ViT-L/14."""
FEATURES = 768
"""Of CLIP ViT-L/14."""
AESTHETIC_SOURCE = "github.com/LAION-AI/aesthetic-predictor"

MUSIQ_SHA256 = "358bb6af275e28ea56821d44fb55c6cb83645db11f394d3ad65b2d149965ab50"
MUSIQ_SOURCE = "musiq_spaq_ckpt-358bb6af.pth of huggingface.co/chaofengc/IQA-PyTorch-Weights"
MUSIQ_SIZES = MusiqSizes()
MAX_SIDE = 512
"""Longer side beyond which VBench shrinks a frame for MUSIQ."""
_CHUNK = 8
"""Frames a forward pass of MUSIQ: 450 patches each at 512×512."""


class AestheticQuality:
    """`aesthetic_quality`: LAION's first aesthetic predictor / 10, about 0.3 to 0.7.

    A linear head (MIT licence) on the normalised image features of OpenAI's CLIP ViT-L/14 (MIT). ``folder`` holds
    `AESTHETIC_HEAD` and a file of CLIP, OpenAI's ViT-L-14.pt or, for `aesthetic_quality_timm`, open_clip_model.safetensors of
    timm/vit_large_patch14_clip_224.openai at 18d05354 (Apache-2.0). Frames: shorter side 224,
    bicubic without antialiasing, the middle. VBench runs CLIP in half precision on a GPU, here it is single. Raises InputError
    for what is missing or another file.
    """

    column = "aesthetic_quality"
    """Of an instance, the column that it fills."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        path, who = folder / AESTHETIC_HEAD, f"metric {self.column!r}"
        check_file(self.column, path, [AESTHETIC_SHA256], AESTHETIC_SOURCE)
        self.head = load_whole(who, nn.Linear(FEATURES, 1), read_weights(who, path), path)
        self.encode, digest = clip_tower(self.column, folder, CLIP_L14, device)
        if digest == CLIP_HUB_SHA256:
            self.column = "aesthetic_quality_timm"
        elif digest != CLIP_L14.sha256:
            raise InputError(f"{who}: the CLIP of {folder} has SHA-256 {digest[:16]}…; fetch {CLIP_L14.source}")

    @torch.inference_mode()
    def score(self, video_FCHW: torch.Tensor) -> float:
        """Mean over the frames (F, 3, H, W) in [0, 1]."""
        check_video(video_FCHW)
        return float(self.head(functional.normalize(self.encode(video_FCHW), dim=-1)).mean() / 10)


class ImagingQuality:
    """`imaging_quality`: MUSIQ trained on SPAQ / 100, 0 to 1, higher is sharper, cleaner and better exposed.

    ``weights``: pyiqa's copy of the published ones (Google Research, Apache-2.0). Frames whose longer side exceeds 512 are shrunk
    to it, bilinear without antialiasing. Raises InputError for a file that is missing or another.
    """

    column = "imaging_quality"

    def __init__(self, weights: Path, device: str | torch.device = "cpu"):
        self.device = device
        check_file(self.column, weights, [MUSIQ_SHA256], MUSIQ_SOURCE)
        who = f"metric {self.column!r}"
        self.model = load_whole(who, Musiq(MUSIQ_SIZES), read_weights(who, weights), weights).to(device)

    @torch.inference_mode()
    def score(self, video_FCHW: torch.Tensor) -> float:
        """Mean over the frames (F, 3, H, W) in [0, 1]."""
        check_video(video_FCHW)
        height, width = video_FCHW.shape[2:]
        scale = MAX_SIDE / max(height, width)
        total = 0.0
        for frame_NCHW in video_FCHW.float().split(_CHUNK):
            frame_NCHW = frame_NCHW.to(self.device)
            if scale < 1:
                size = int(scale * height), int(scale * width)
                frame_NCHW = functional.interpolate(frame_NCHW, size, mode="bilinear", antialias=False)
            total += float(self.model(frame_NCHW).sum())
        return total / len(video_FCHW) / 100
