"""Features of frames, whose `consistency` is VBench's subject and background consistency, or a metric of another name.

A column has VBench's name only where the SHA-256 of the weights is that of the very file that VBench reads:
`subject_consistency` with DINO ViT-B/16, `background_consistency` with CLIP ViT-B/32. Other weights of the same networks fill
`frame_consistency_dino` and `frame_consistency_clip`; timm's copy of CLIP is among them, as it was not compared with OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from eval.metrics.alignment import embedded_clip
from eval.metrics.weights import digest_of, fill, read_archive, read_tensors
from otca.errors import InputError
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.untrusted import read_object

EMBEDDED = "frame_consistency_embedded"
"""Column of the shipped open_clip model."""
SIDE = 224
"""Shorter side of what an encoder sees, pixels."""
_CHUNK = 32
"""Frames a forward pass."""

DINO_SIZES = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
DINO_SHA256 = "bf34ad0f424b9029b593e8dc3ed553bf26e88bcba0d32bf3e62a6209cb64c85e"
DINO_SOURCE = "dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"


@dataclass(frozen=True)
class OpenAiClip:
    """An image tower of OpenAI's CLIP and the files that hold it: OpenAI's archive, timm's copy of its tensors."""

    name: str
    archive: str
    archive_sha256: str
    hub: str
    hub_sha256: str
    width: int
    layers: int
    patch_size: int
    features: int

    @property
    def sha256(self) -> tuple[str, str]:
        """Of either file."""
        return self.archive_sha256, self.hub_sha256

    @property
    def source(self) -> str:
        """Where its files are had from."""
        return f"openaipublic.azureedge.net/clip/models/{self.archive_sha256}/{self.archive} or the hub's {self.hub}"


CLIP_B32 = OpenAiClip(
    "CLIP ViT-B/32",
    archive="ViT-B-32.pt",
    archive_sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    hub="timm/vit_base_patch32_clip_224.openai",
    hub_sha256="e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    width=768,
    layers=12,
    patch_size=32,
    features=512,
)
CLIP_L14 = OpenAiClip(
    "CLIP ViT-L/14",
    archive="ViT-L-14.pt",
    archive_sha256="b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    hub="timm/vit_large_patch14_clip_224.openai",
    hub_sha256="9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    width=1024,
    layers=24,
    patch_size=14,
    features=768,
)
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weights in a folder of open_clip."""


def consistency(feature_FD: torch.Tensor) -> float:
    """VBench's mean over frames i ≥ 1 of ½ [max(0, cos(f_{i−1}, f_i)) + max(0, cos(f_0, f_i))]: 0 to 1, higher is steadier."""
    if feature_FD.ndim != 2 or len(feature_FD) < 2:
        raise InputError(f"consistency needs features (F, D) of at least 2 frames, got {tuple(feature_FD.shape)}")
    unit_FD = functional.normalize(feature_FD.double(), dim=1)
    before, first = (unit_FD[:-1] * unit_FD[1:]).sum(1), unit_FD[1:] @ unit_FD[0]
    return float((before.clamp(min=0) + first.clamp(min=0)).mean() / 2)


@dataclass(frozen=True)
class FrameEncoder:
    """``encode`` maps frames (F, 3, H, W) in [0, 1] to features (F, D); their consistency fills ``column``."""

    column: str
    encode: Callable[[torch.Tensor], torch.Tensor]
    protocol: dict[str, str]


def embedded_encoder(clip=None) -> FrameEncoder:
    """`frame_consistency_embedded`: the shipped open_clip model, for videos of the embedded task."""
    clip = clip or embedded_clip()
    side = clip.config["model_cfg"]["vision_cfg"]["image_size"]

    def encode(video_FCHW: torch.Tensor) -> torch.Tensor:
        if video_FCHW.shape[2:] != (side, side):
            video_FCHW = functional.interpolate(video_FCHW, (side, side), mode="bilinear", antialias=True)
        return clip.image_features(video_FCHW.unsqueeze(1))

    return FrameEncoder(EMBEDDED, encode, {"backbone": f"embedded open_clip model, {side}×{side}"})


# ----------------------------------------------------------------------------------------------------------------- DINO


def dino_encoder(weights: Path, device: str | torch.device = "cpu") -> FrameEncoder:
    """`subject_consistency`: class token of DINO ViT-B/16 (Caron et al. 2021), frames with their shorter side at 224 pixels.

    ``weights``: facebookresearch/dino's own file (SHA-256 bf34ad0f…9cb64c85e), or others under its names, which are timm's too.
    Licence of facebookresearch/dino: Apache-2.0; for the weights none is stated apart. The network is timm's; the embeddings of
    places are resized as in facebookresearch/dino (`dino_places`). Raises InputError for what is missing or does not fit.
    """
    from timm.models.vision_transformer import VisionTransformer

    digest = digest_of("subject_consistency", weights, DINO_SOURCE)
    column = "subject_consistency" if digest == DINO_SHA256 else "frame_consistency_dino"
    model = VisionTransformer(img_size=SIDE, num_classes=0, weight_init="skip", **DINO_SIZES)
    model = fill(column, model, read_tensors(column, weights), weights).to(device)

    def features(frame_NCHW: torch.Tensor) -> torch.Tensor:
        patch_NLD = model.patch_embed.proj(frame_NCHW).flatten(2).mT
        token_NLD = torch.cat([model.cls_token.expand(len(patch_NLD), -1, -1), patch_NLD], dim=1)
        token_NLD = token_NLD + dino_places(model.pos_embed, *frame_NCHW.shape[2:], DINO_SIZES["patch_size"])
        return model.norm(model.blocks(token_NLD))[:, 0]

    def encode(video_FCHW: torch.Tensor) -> torch.Tensor:
        normal = _normalize(_resize(video_FCHW, "bilinear", crop=False), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return _in_chunks(features, normal, device)

    protocol = {"backbone": f"DINO ViT-B/16, weights SHA-256 {digest[:16]}", "resolution": f"shorter side {SIDE}"}
    return FrameEncoder(column, encode, protocol)


def dino_places(embedding_1LD: torch.Tensor, height: int, width: int, patch: int) -> torch.Tensor:
    """DINO's embeddings of the class token's and the patches' places in a frame of this size: (1, 1 + rows · columns, D).

    The published code resizes the trained grid, bicubic, by the factors (rows + 0.1)/14 and (columns + 0.1)/14 instead of to
    that many rows and columns, which samples it at slightly other points.
    """
    grid = isqrt(embedding_1LD.shape[1] - 1)
    rows, columns = height // patch, width // patch
    if (rows, columns) == (grid, grid) and height == width:
        return embedding_1LD
    plane_1Dhw = embedding_1LD[:, 1:].mT.unflatten(2, (grid, grid))
    factors = ((rows + 0.1) / grid, (columns + 0.1) / grid)
    resized_1Dhw = functional.interpolate(plane_1Dhw, scale_factor=factors, mode="bicubic")
    return torch.cat([embedding_1LD[:, :1], resized_1Dhw.flatten(2).mT], dim=1)


# ----------------------------------------------------------------------------------------------------------------- CLIP


def clip_encoder(path: Path, device: str | torch.device = "cpu") -> FrameEncoder:
    """`background_consistency`: OpenAI's CLIP ViT-B/32, frames with their shorter side at 224 pixels, the middle.

    ``path``: OpenAI's ViT-B-32.pt (SHA-256 40d36571…8ba950af; licence of openai/CLIP: MIT), or a folder of open_clip, which fills
    `frame_consistency_clip`. Weights that are neither OpenAI's nor timm's copy (hub: timm/vit_base_patch32_clip_224.openai at
    a6f597a3, Apache-2.0) need the folder, whose configuration must be that of the same network. Raises InputError for what is
    missing or does not fit.
    """
    metric = "background_consistency"
    weights = clip_weights(metric, path, CLIP_B32)
    digest = digest_of(metric, weights, CLIP_B32.source)
    if digest != CLIP_B32.archive_sha256:
        metric = "frame_consistency_clip"
        if digest != CLIP_B32.hub_sha256:
            _check_config(metric, weights, CLIP_B32)
    encode = clip_tower(metric, weights, CLIP_B32, digest, device)
    protocol = {"backbone": f"CLIP ViT-B/32, weights SHA-256 {digest[:16]}", "resolution": f"{SIDE}, centre crop"}
    return FrameEncoder(metric, encode, protocol)


def clip_weights(metric: str, path: Path, clip: OpenAiClip) -> Path:
    """The file of weights that is meant: the path itself, or what a folder holds. Raises InputError where it holds none."""
    if not path.is_dir():
        return path
    found = next((path / name for name in (clip.archive, *CLIP_FILES) if (path / name).is_file()), None)
    if found is None:
        names = " nor ".join((clip.archive, *CLIP_FILES))
        raise InputError(f"metric {metric!r}: {path} holds neither {names}; fetch {clip.source}")
    return found


def clip_tower(
    metric: str, weights: Path, clip: OpenAiClip, digest: str, device: str | torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Frames (F, 3, H, W) in [0, 1] → features (F, D) of the image tower; ``digest``: SHA-256 of the file of weights.

    VBench runs it in half precision on a GPU; here it is single. Raises InputError for weights that do not fit.
    """
    from open_clip.transformer import QuickGELU, VisionTransformer

    model = VisionTransformer(
        SIDE, clip.patch_size, clip.width, clip.layers, clip.width // 64, 4.0, output_dim=clip.features, act_layer=QuickGELU
    )
    tensors = (read_archive if digest == clip.archive_sha256 else read_tensors)(metric, weights)
    tower = {name: value for name, value in tensors.items() if name.startswith("visual.")}
    model = fill(metric, model, tower, weights, lambda name: name.removeprefix("visual."), lambda name: f"visual.{name}")
    model = model.to(device)

    def encode(video_FCHW: torch.Tensor) -> torch.Tensor:
        return _in_chunks(model, _normalize(_resize(video_FCHW, "bicubic", crop=True), CLIP_MEAN, CLIP_STD), device)

    return encode


def _check_config(metric: str, weights: Path, clip: OpenAiClip) -> None:
    """Raise InputError unless the configuration beside the weights is the network's: they alone do not tell its activation."""
    path = weights.parent / "open_clip_config.json"
    if not path.is_file():
        raise InputError(
            f"metric {metric!r}: {weights} is no file of OpenAI's, and {path.name} beside it, which would tell its network, "
            f"is missing; fetch {clip.source}"
        )
    content: Any = read_object(path, f"metric {metric!r}").get("model_cfg")
    found = content if isinstance(content, dict) else {}
    vision = found.get("vision_cfg")
    found = {**found, **(vision if isinstance(vision, dict) else {})}
    wanted = {"image_size": SIDE, "width": clip.width, "layers": clip.layers, "patch_size": clip.patch_size}
    for key, value in {**wanted, "embed_dim": clip.features, "quick_gelu": True}.items():
        if found.get(key) != value:
            raise InputError(f"metric {metric!r}: {path} is of no {clip.name}: {key} is {found.get(key)!r}, not {value!r}")


# --------------------------------------------------------------------------------------------------------------- frames


def _resize(video_FCHW: torch.Tensor, mode: str, crop: bool) -> torch.Tensor:
    """Shorter side to 224 without antialiasing, as VBench does: of a file's 256 levels, and not rounded to them again."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    pixels = (video_FCHW.float() * 255).round()
    pixels = transforms.resize(pixels, [SIDE], InterpolationMode(mode), antialias=False)
    return (transforms.center_crop(pixels, [SIDE, SIDE]) if crop else pixels) / 255


def _normalize(video_FCHW: torch.Tensor, mean: Collection[float], std: Collection[float]) -> torch.Tensor:
    return (video_FCHW - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.inference_mode()
def _in_chunks(encode: Callable | nn.Module, video_FCHW: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    return torch.cat([encode(chunk.to(device)).float().cpu() for chunk in video_FCHW.split(_CHUNK)])
