"""VBench's overall consistency, which temporal style is computed as too: how well a video agrees with its prompt, by ViCLIP.

ViCLIP (Wang et al. 2023, InternVid) is a CLIP whose image tower sees the patches of all frames at once, each with an embedding of
its frame added, beside one class token. No maintained library has it; here it is put together from open_clip's towers, whose
names of weights are its own. The network that a file holds is read off the shapes of its tensors.

Axes: F frames of a video, T frames that are looked at, L patches of a frame, D width of a tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from eval.metrics.encoders import FILES
from otca.errors import InputError, one_line
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD, to_pixels
from otca.rewards.published import load_whole, read_weights

COLUMN = "overall_consistency"
HEAD_WIDTH = 64  # width of every attention head of either tower
TEMPORAL = "temporal_positional_embedding"
PARTS = ("vision_encoder", "text_encoder")
READ_OFF = {
    "vision_encoder.conv1.weight": 5,
    "vision_encoder.positional_embedding": 2,
    f"vision_encoder.{TEMPORAL}": 3,
    "vision_encoder.proj": 2,
    "text_encoder.positional_embedding": 2,
    "text_encoder.token_embedding.weight": 2,
}
"""Tensors whose shapes tell the network, and the number of their axes."""


class ViClip:
    """`overall_consistency`: cosine of ViCLIP's features of a video and of its prompt, −1 to 1, about 0.2; higher is better.

    ``weights``: the file that VBench reads; others of its layout fill ``overall_consistency_viclip``. Licence: MIT in
    the hub's OpenGVLab/ViCLIP; where VBench has it from, none is stated. Network and input follow vbench/third_party/ViCLIP of
    github.com/Vchitect/VBench at 45e79ec, in float32; the published weights themselves were not at hand.
    """

    def __init__(self, weights: Path, device: str | torch.device = "cpu"):
        import open_clip

        self.column, _ = FILES["viclip"].column(COLUMN, weights, f"{COLUMN}_viclip")
        who = f"metric {self.column!r}"
        tensors = read_weights(who, weights)
        network = build_network(self.column, tensors, weights)
        tensors["vision_encoder.conv1.weight"] = tensors["vision_encoder.conv1.weight"].squeeze(2)  # one frame deep
        self.network, self.device = load_whole(who, network, tensors, weights).to(device), device
        self.tokenize = open_clip.SimpleTokenizer(context_length=self.network.text_encoder.context_length)

    def score(self, video_FCHW: torch.Tensor, text: str) -> float:
        """Cosine of a video (F, 3, H, W) in [0, 1] and a text, which is cut at 32 tokens."""
        wanted = getattr(self.network.vision_encoder, TEMPORAL).shape[1]
        frame_TCHW = self._preprocess(video_FCHW[frame_indices(len(video_FCHW), wanted)])
        return float(self._video_features(frame_TCHW) @ self._text_features(text))

    def _preprocess(self, video_TCHW: torch.Tensor) -> torch.Tensor:
        """Shorter side to 224, bicubic without antialiasing and rounded to 256 levels again, the middle, normalised."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as transforms

        side = self.network.vision_encoder.image_size[0]
        pixels = transforms.resize(to_pixels(video_TCHW), [side], InterpolationMode.BICUBIC, antialias=False)
        return transforms.normalize(transforms.center_crop(pixels, [side, side]) / 255, CLIP_MEAN, CLIP_STD)

    @torch.inference_mode()
    def _video_features(self, frame_TCHW: torch.Tensor) -> torch.Tensor:
        """Unit features (D,) of frames: joint attention over a class token and the patches of all frames, place by place."""
        tower = self.network.vision_encoder
        patch_TLD = tower.conv1(frame_TCHW.to(self.device)).flatten(2).mT
        class_1D = (tower.class_embedding + tower.positional_embedding[0])[None]
        patch_LTD = (patch_TLD + tower.positional_embedding[1:]).transpose(0, 1) + getattr(tower, TEMPORAL)
        token_1ND = torch.cat([class_1D, patch_LTD.flatten(0, 1)])[None]
        first_D = tower.ln_post(tower.transformer(tower.ln_pre(token_1ND)))[0, 0]
        return functional.normalize(first_D @ tower.proj, dim=0)

    @torch.inference_mode()
    def _text_features(self, text: str) -> torch.Tensor:
        """Unit features (D,) of the token that ends the text."""
        return functional.normalize(self.network.text_encoder(self.tokenize([text]).to(self.device))[0], dim=0)


def frame_indices(frames: int, wanted: int = 8) -> list[int]:
    """The middle one of each of so many equal parts of a video; of fewer frames all, the last one repeated."""
    edges = np.linspace(0, frames, min(wanted, frames) + 1).astype(int)
    middles = ((edges[:-1] + edges[1:] - 1) // 2).tolist()
    return middles + middles[-1:] * (wanted - len(middles))


def build_network(metric: str, tensors: Mapping[str, torch.Tensor], path: Path) -> nn.Module:
    """Both towers, under the file's names, for tensors of these shapes. Raises InputError for what is no ViCLIP."""
    from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer

    absent = [name for name, axes in READ_OFF.items() if name not in tensors or tensors[name].ndim != axes]
    if absent:
        said = f"{path} is no file of ViCLIP: it lacks {', '.join(absent)}"
        raise InputError(f"metric {metric!r}: {said}; fetch {FILES['viclip'].source}")
    convolution, places, frames, projection, context, words = (tensors[name].shape for name in READ_OFF)
    depth = {part: len({k.split(".")[3] for k in tensors if k.startswith(f"{part}.transformer.resblocks.")}) for part in PARTS}
    sizes = {part: (width, depth[part], width // HEAD_WIDTH) for part, width in zip(PARTS, (convolution[0], words[1]))}
    activation = {"output_dim": projection[1], "act_layer": QuickGELU}
    network = nn.Module()
    try:
        side, patch = convolution[-1] * isqrt(places[0] - 1), convolution[-1]
        network.vision_encoder = VisionTransformer(side, patch, *sizes["vision_encoder"], 4.0, **activation)
        width, layers, heads = sizes["text_encoder"]
        network.text_encoder = TextTransformer(context[0], words[0], width, heads, layers, **activation)
    except Exception as error:  # of sizes that no network has, several kinds
        raise InputError(f"metric {metric!r}: {path} is of no network that open_clip builds ({one_line(error)})") from error
    network.vision_encoder.register_parameter(TEMPORAL, nn.Parameter(torch.zeros(frames)))
    network.temp = nn.Parameter(torch.ones(()))  # of the training loss
    return network
