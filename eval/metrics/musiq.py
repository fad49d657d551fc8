"""MUSIQ (Ke et al. 2021), the image quality transformer over patches of several scales, under the keys of pyiqa's weights.

A picture is cut into patches of 32×32 at its own size and resized to longer sides of 224 and 384. A small ResNet stem embeds
each patch; its place on a 10×10 grid and its scale are added; the class token after the transformer gives one number. Patches
that fill up the last row and column hold the middle grey; none are added to reach a fixed length, since they would be masked.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

PATCH = 32
GRID = 10
LONGER_SIDES = (224, 384)
GROUPS = 32
INPUTS = ("query", "key", "value")


@dataclass(frozen=True)
class MusiqSizes:
    """Widths and depths; the defaults are the published ones. ``stem`` is a multiple of 32."""

    stem: int = 64
    width: int = 384
    hidden: int = 1152
    heads: int = 6
    layers: int = 14


class Musiq(nn.Module):
    """Pictures of one size (N, 3, H, W) in [0, 1] → quality (N,), 0 to 100 when trained on SPAQ."""

    def __init__(self, sizes: MusiqSizes = MusiqSizes()):
        super().__init__()
        self.conv_root = StandardizedConv(3, sizes.stem, 7, stride=2, bias=False)
        self.gn_root = nn.GroupNorm(GROUPS, sizes.stem, eps=1e-6)
        self.block1 = Bottleneck(sizes.stem, 4 * sizes.stem)
        self.embedding = nn.Linear(4 * sizes.stem * (PATCH // 4) ** 2, sizes.width)
        self.transformer_encoder = Encoder(sizes)
        self.head = nn.Linear(sizes.width, 1)

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

    def __init__(self, sizes: MusiqSizes):
        super().__init__()
        self.posembed_input = nn.ParameterDict({"position_emb": torch.zeros(1, GRID**2, sizes.width)})
        self.scaleembed_input = nn.ParameterDict({"scale_emb": torch.zeros(len(LONGER_SIDES) + 1, sizes.width)})
        self.cls = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.transformer = nn.Sequential(OrderedDict((f"encoderblock_{i}", Block(sizes)) for i in range(sizes.layers)))
        self.encoder_norm = nn.LayerNorm(sizes.width, eps=1e-6)

    def where(self, place_L: torch.Tensor, scale: int) -> torch.Tensor:
        """Embeddings (L, D) of patches' places on the grid and their scale."""
        return self.posembed_input["position_emb"][0, place_L] + self.scaleembed_input["scale_emb"][scale]

    def forward(self, token_NLD: torch.Tensor) -> torch.Tensor:
        return self.encoder_norm(self.transformer(torch.cat([self.cls.expand(len(token_NLD), -1, -1), token_NLD], 1)))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm."""

    def __init__(self, sizes: MusiqSizes):
        super().__init__()
        self.heads = sizes.heads
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attention = nn.ModuleDict({name: nn.Linear(sizes.width, sizes.width) for name in (*INPUTS, "out")})
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        inner, outer = nn.Linear(sizes.width, sizes.hidden), nn.Linear(sizes.hidden, sizes.width)
        self.mlp = nn.Sequential(OrderedDict(fc1=inner, act=nn.GELU(), fc2=outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normal = self.norm1(x)
        parts = (self.attention[name](normal).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in INPUTS)
        mixed = functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        x = x + self.attention["out"](mixed)
        return x + self.mlp(self.norm2(x))
