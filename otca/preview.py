"""A cheap decoder for valuing states: each cell of the latent grid to its block of pixels, linearly, fitted as training goes.

The latents and media that a rollout ends with are the examples, so nothing is decoded for the fit and it follows the policy.
A cell sees its 3×3 neighbours; a video's first latent frame, which stands for one frame, has a map of its own. Axes: N cells,
D features of a cell, C latent channels, F frames, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from otca.types import Total, alone

RIDGE = 1e-3
"""Share of the features' mean square that is added to their diagonal."""


@dataclass(frozen=True)
class LinearPreview:
    """``map_FDP``: for the first latent frame, and for the later ones if there are any, features → pixels of a block.

    ``span``: frames that a later latent frame stands for; ``side``: pixels a side of a cell.
    """

    map_FDP: tuple[torch.Tensor, ...]
    span: int
    side: int

    def decode(self, grid_BCFHW: torch.Tensor) -> torch.Tensor:
        """Media (B, F, 3, H, W) in [0, 1], fp32, of latents laid out as a grid."""
        parts = []
        for map_DP, frames_BCFHW, span in zip(self.map_FDP, _split(grid_BCFHW), (1, self.span)):
            pixels = cell_features(frames_BCFHW) @ map_DP.to(grid_BCFHW.device)
            parts.append(_from_blocks(pixels, span, self.side))
        return torch.cat(parts, dim=1).clamp(0, 1)


def fit_preview(grid_BCFHW: torch.Tensor, media_BFCHW: torch.Tensor, total: Total = alone) -> LinearPreview:
    """Ridge regression of media (B, F, 3, H, W) on the latents that they were decoded from, over all processes' samples."""
    side = media_BFCHW.shape[3] // grid_BCFHW.shape[3]
    latent_frames, frames = grid_BCFHW.shape[2], media_BFCHW.shape[1]
    span = (frames - 1) // (latent_frames - 1) if latent_frames > 1 else 1
    maps = []
    media = (media_BFCHW[:, :1], media_BFCHW[:, 1:])
    for frames_BCFHW, part_BFCHW, length in zip(_split(grid_BCFHW), media, (1, span)):
        feature_ND = cell_features(frames_BCFHW).flatten(0, 3).double()
        target_NP = _to_blocks(part_BFCHW.to(feature_ND), length, side).flatten(0, 3)
        square_DD, cross_DP = total(feature_ND.T @ feature_ND), total(feature_ND.T @ target_NP)
        penalty = RIDGE * square_DD.diagonal().mean()
        square_DD = square_DD + penalty * torch.eye(len(square_DD), dtype=square_DD.dtype, device=square_DD.device)
        maps.append(torch.linalg.solve(square_DD, cross_DP).float())
    return LinearPreview(tuple(maps), span, side)


def cell_features(grid_BCFHW: torch.Tensor) -> torch.Tensor:
    """Each cell's 3×3 neighbourhood in every channel (0 beyond the edge), and a one: (B, F, H, W, 9·C + 1) fp32."""
    batch, _, frames, height, width = grid_BCFHW.shape
    picture_NCHW = grid_BCFHW.float().transpose(1, 2).flatten(0, 1)
    patch_NDL = functional.unfold(picture_NCHW, kernel_size=3, padding=1)
    feature = patch_NDL.transpose(1, 2).reshape(batch, frames, height, width, -1)
    return torch.cat([feature, torch.ones_like(feature[..., :1])], dim=-1)


def _split(grid_BCFHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The first latent frame, and the later ones if there are any."""
    return (grid_BCFHW[:, :, :1], *((grid_BCFHW[:, :, 1:],) if grid_BCFHW.shape[2] > 1 else ()))


def _to_blocks(media_BFCHW: torch.Tensor, span: int, side: int) -> torch.Tensor:
    """(B, F·span, 3, H·side, W·side) → (B, F, H, W, span·3·side·side)."""
    value = media_BFCHW.unflatten(4, (-1, side)).unflatten(3, (-1, side)).unflatten(1, (-1, span))
    #      B F span 3 H side W side
    return value.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4)


def _from_blocks(block_BFHWP: torch.Tensor, span: int, side: int) -> torch.Tensor:
    """The reverse of `_to_blocks`."""
    value = block_BFHWP.unflatten(4, (span, 3, side, side))
    #      B F H W span 3 side side → B F span 3 H side W side
    return value.permute(0, 1, 4, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(1, 2)
