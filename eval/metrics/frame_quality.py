"""VBench's aesthetic and imaging quality: each the mean over all frames of a published scorer of pictures.

Weights are local files; each is refused unless its SHA-256 is on record. A column has VBench's name with the very files that
VBench uses; with timm's copy of CLIP, which was not compared with OpenAI's, it is `aesthetic_quality_timm`.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from eval.metrics.encoders import FILES, clip_tower
from otca.errors import InputError
from otca.rewards.published import CARDS, load_whole, read_weights

HEAD = "sa_0_4_vit_l_14_linear.pth"
CLIP_HUB_SHA256 = CARDS["clip"].files[1].sha256  # of timm's copy of CLIP ViT-L/14
FEATURES = 768  # of CLIP ViT-L/14
MAX_SIDE = 512  # longer side beyond which VBench shrinks a frame for MUSIQ
CHUNK = 8  # frames a forward pass of MUSIQ: 450 patches each at 512×512
MUSIQ_SIZES = {}  # other than the published ones
STEM, PATCH, GRID, GROUPS = 64, 32, 10, 32  # of MUSIQ: channels of its stem, pixels of a patch, places a side, norm groups
LONGER_SIDES = (224, 384)
INPUTS = ("query", "key", "value")


class AestheticQuality:
    """`aesthetic_quality`: LAION's first aesthetic predictor / 10, about 0.3 to 0.7.

    A linear head (MIT licence) on the normalised image features of OpenAI's CLIP ViT-L/14 (MIT). ``folder`` holds `HEAD` and
    OpenAI's ViT-L-14.pt or timm's copy of it at 18d05354 (Apache-2.0).
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        path, who = folder / HEAD, "metric 'aesthetic_quality'"
        self.column, _ = FILES["aesthetic"].column("aesthetic_quality", path)
        self.head = load_whole(who, nn.Linear(FEATURES, 1), read_weights(who, path), path)
        self.encode, digest = clip_tower(self.column, folder, FILES["clip_l14"], device)
        if digest not in (FILES["clip_l14"].sha256, CLIP_HUB_SHA256):
            raise InputError(f"{who}: the CLIP of {folder} has SHA-256 {digest[:16]}…; fetch {FILES['clip_l14'].source}")
        self.column += "_timm" if digest == CLIP_HUB_SHA256 else ""

    @torch.inference_mode()
    def score(self, video_FCHW: torch.Tensor, text: str = "") -> float:
        """Mean over the frames (F, 3, H, W) in [0, 1]; the text is not looked at."""
        return float(self.head(functional.normalize(self.encode(video_FCHW), dim=-1)).mean() / 10)


class ImagingQuality:
    """`imaging_quality`: MUSIQ trained on SPAQ / 100, 0 to 1, by pyiqa's copy of the weights (Google Research, Apache-2.0).

    Frames whose longer side exceeds 512 are shrunk to it, bilinear without antialiasing.
    """

    def __init__(self, weights: Path, device: str | torch.device = "cpu"):
        who, self.device = "metric 'imaging_quality'", device
        self.column, _ = FILES["musiq"].column("imaging_quality", weights)
        self.model = load_whole(who, Musiq(**MUSIQ_SIZES), read_weights(who, weights), weights).to(device)

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


class Musiq(nn.Module):
    """MUSIQ (Ke et al. 2021), under the keys of pyiqa's weights: pictures of one size (N, 3, H, W) in [0, 1] → quality (N,).

    A picture is cut into patches of 32×32 at its own size and resized to longer sides of 224 and 384. A small ResNet stem embeds
    each patch; its place on a 10×10 grid and its scale are added; the class token after the transformer gives one number. Patches
    that fill up the last row and column hold the middle grey; none are added to reach a fixed length, since they would be masked.
    """

    def __init__(self, width: int = 384, hidden: int = 1152, heads: int = 6, layers: int = 14):
        super().__init__()
        self.conv_root = StandardizedConv(3, STEM, 7, stride=2, bias=False)
        self.gn_root = nn.GroupNorm(GROUPS, STEM, eps=1e-6)
        self.block1 = Bottleneck(STEM, 4 * STEM)
        self.embedding = nn.Linear(4 * STEM * (PATCH // 4) ** 2, width)
        self.transformer_encoder = Encoder(width, hidden, heads, layers)
        self.head = nn.Linear(width, 1)

    def forward(self, picture_NCHW: torch.Tensor) -> torch.Tensor:
        height, width = picture_NCHW.shape[2:]
        centred_NCHW = 2 * picture_NCHW - 1
        tokens, where = [], []
        for scale, side in enumerate((*LONGER_SIDES, max(height, width))):
            ratio = side / max(height, width)
            size = round(height * ratio), round(width * ratio)
            resized = centred_NCHW if size == (height, width) else functional.interpolate(centred_NCHW, size, mode="bicubic")
            patch_NLCPP, place_L = cut(resized)
            tokens.append(self._embed(patch_NLCPP))
            where.append(self.transformer_encoder.where(place_L, scale))
        return self.head(self.transformer_encoder(torch.cat(tokens, 1) + torch.cat(where))[:, 0])[:, 0]

    def _embed(self, patch_NLCPP: torch.Tensor) -> torch.Tensor:
        pictures = len(patch_NLCPP)
        x = functional.pad(patch_NLCPP.flatten(0, 1), (2, 3, 2, 3))  # TensorFlow's "same" padding, the odd one last
        x = functional.relu(self.gn_root(self.conv_root(x)))
        x = self.block1(functional.max_pool2d(functional.pad(x, (0, 1, 0, 1)), 3, 2))
        return self.embedding(x.permute(0, 2, 3, 1).flatten(1)).unflatten(0, (pictures, -1))


def cut(picture_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (N, L, C, 32, 32) row by row, and the place (L,) of each on the grid, 0 to 99; sides are filled up."""
    height, width = picture_NCHW.shape[2:]
    below, right = -height % PATCH, -width % PATCH
    padded = functional.pad(picture_NCHW, (right // 2, right - right // 2, below // 2, below - below // 2))
    patch_NCYXPP = padded.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    axis = torch.arange(GRID, dtype=torch.float32, device=picture_NCHW.device).view(1, 1, -1)
    row_Y, column_X = (functional.interpolate(axis, n, mode="nearest").long().flatten() for n in patch_NCYXPP.shape[2:4])
    return patch_NCYXPP.permute(0, 2, 3, 1, 4, 5).flatten(1, 2), (row_Y[:, None] * GRID + column_X).flatten()


class StandardizedConv(nn.Conv2d):
    """A convolution whose kernels are brought to mean 0 and (unbiased) standard deviation 1 before use."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spread = self.weight.std((1, 2, 3), keepdim=True) + 1e-5
        kernel = (self.weight - self.weight.mean((1, 2, 3), keepdim=True)) / spread
        return functional.conv2d(x, kernel, stride=self.stride, padding=self.padding)


class Bottleneck(nn.Module):
    """The stem's only residual block; its shortcut is projected."""

    def __init__(self, width: int, out: int):
        super().__init__()
        for name, size, channels in (("1", 1, width), ("2", 3, width), ("3", 1, out), ("_proj", 1, out)):
            self.add_module(f"conv{name}", StandardizedConv(width, channels, size, padding=size // 2, bias=False))
            self.add_module(f"gn{name}", nn.GroupNorm(GROUPS, channels, eps=1e-4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.gn1(self.conv1(x)))
        y = functional.relu(self.gn2(self.conv2(y)))
        return functional.relu(self.gn3(self.conv3(y)) + self.gn_proj(self.conv_proj(x)))


class Encoder(nn.Module):
    """Tokens (N, L, D) → (N, 1 + L, D), the class token first."""

    def __init__(self, width: int, hidden: int, heads: int, layers: int):
        super().__init__()
        self.posembed_input = nn.ParameterDict({"position_emb": torch.zeros(1, GRID**2, width)})
        self.scaleembed_input = nn.ParameterDict({"scale_emb": torch.zeros(len(LONGER_SIDES) + 1, width)})
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        blocks = OrderedDict((f"encoderblock_{i}", Block(width, hidden, heads)) for i in range(layers))
        self.transformer, self.encoder_norm = nn.Sequential(blocks), nn.LayerNorm(width, eps=1e-6)

    def where(self, place_L: torch.Tensor, scale: int) -> torch.Tensor:
        """Embeddings (L, D) of patches' places on the grid and their scale."""
        return self.posembed_input["position_emb"][0, place_L] + self.scaleembed_input["scale_emb"][scale]

    def forward(self, token_NLD: torch.Tensor) -> torch.Tensor:
        return self.encoder_norm(self.transformer(torch.cat([self.cls.expand(len(token_NLD), -1, -1), token_NLD], 1)))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm."""

    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in (*INPUTS, "out")})
        self.mlp = nn.Sequential(OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = self.norm1(x)
        parts = (self.attention[name](normal).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in INPUTS)
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.attention["out"](mixed)
        return x + self.mlp(self.norm2(x))
