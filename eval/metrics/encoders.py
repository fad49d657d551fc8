"""Features of frames, whose `consistency` is VBench's subject and background consistency, or a metric of another name.

A column has VBench's name only with the very file that VBench reads: `subject_consistency` with DINO ViT-B/16,
`background_consistency` with CLIP ViT-B/32. Other weights of the same networks fill `frame_consistency_dino` and
`frame_consistency_clip`; timm's copy of CLIP is among them, as it was not compared with OpenAI's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import torch
import yaml
from torch.nn import functional

from eval.metrics.embedded import embedded_clip
from otca.errors import InputError, one_line
from otca.files import read_object, sha256
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.rewards.published import load_whole, read_weights

EMBEDDED = "frame_consistency_embedded"  # column of the shipped open_clip model
CONFIG = "open_clip_config.json"
CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # weights in a folder of open_clip
SIDE = 224  # shorter side of what an encoder sees, pixels
CHUNK = 32  # frames a forward pass
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DINO_SIZES = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12}
Encode = Callable[[torch.Tensor], torch.Tensor]  # from frames (F, 3, H, W) in [0, 1] to features (F, D)


@dataclass(frozen=True)
class VBenchFile:
    """The very file that VBench reads: its SHA-256, and where it is had from; of OpenAI's CLIP also name and network."""

    sha256: str
    source: str
    archive: str = ""
    network: str = ""  # open_clip's name of it

    def column(self, metric: str, path: Path, other: str = "") -> tuple[str, str]:
        """The column that a file fills, and its SHA-256: ``metric`` if it is this one, else ``other``; refused if that is ""."""
        if not path.is_file():
            raise InputError(f"metric {metric!r}: {path} not found; fetch it from {self.source}")
        found = sha256(path)
        if found != self.sha256 and not other:
            said = f"{path} has SHA-256 {found[:16]}…, VBench's has {self.sha256[:16]}…"
            raise InputError(f"metric {metric!r}: {said}; fetch it from {self.source}")
        return metric if found == self.sha256 else other, found


VBENCH = yaml.safe_load(Path(__file__).with_name("vbench.yaml").read_text())
FILES = {name: VBenchFile(**facts) for name, facts in VBENCH["files"].items()}


def consistency(feature_FD: torch.Tensor) -> float:
    """VBench's mean over frames i ≥ 1 of ½ [max(0, cos(f_{i−1}, f_i)) + max(0, cos(f_0, f_i))]: 0 to 1, higher is steadier."""
    if len(feature_FD) < 2:
        raise InputError(f"video has {len(feature_FD)} frame(s), at least 2 are needed")
    unit_FD = functional.normalize(feature_FD.double(), dim=1)
    before, first = (unit_FD[:-1] * unit_FD[1:]).sum(1), unit_FD[1:] @ unit_FD[0]
    return float((before.clamp(min=0) + first.clamp(min=0)).mean() / 2)


@dataclass(frozen=True)
class FrameEncoder:
    """The consistency of the features fills ``column``."""

    column: str
    encode: Encode
    protocol: dict[str, str]

    def score(self, video_FCHW: torch.Tensor, text: str = "") -> float:
        """Consistency of the frames' features; the text is not looked at."""
        return consistency(self.encode(video_FCHW))


def embedded_encoder(clip=None) -> FrameEncoder:
    """`frame_consistency_embedded`: the shipped open_clip model, for videos of the embedded task."""
    clip = clip or embedded_clip()
    side = clip.config["model_cfg"]["vision_cfg"]["image_size"]

    def encode(video_FCHW: torch.Tensor) -> torch.Tensor:
        if video_FCHW.shape[2:] != (side, side):
            video_FCHW = functional.interpolate(video_FCHW, (side, side), mode="bilinear", antialias=True)
        return clip.image_features(video_FCHW.unsqueeze(1))

    return FrameEncoder(EMBEDDED, encode, {"backbone": f"embedded open_clip model, {side}×{side}"})


def dino_encoder(weights: Path, device: str | torch.device = "cpu") -> FrameEncoder:
    """`subject_consistency`: class token of DINO ViT-B/16 (Caron et al. 2021), frames with their shorter side at 224 pixels.

    ``weights``: facebookresearch/dino's own file (Apache-2.0 in its repository), or others under its names, which are timm's too.
    """
    from timm.models.vision_transformer import VisionTransformer

    column, digest = FILES["dino"].column("subject_consistency", weights, "frame_consistency_dino")
    who = f"metric {column!r}"
    model = VisionTransformer(img_size=SIDE, num_classes=0, weight_init="skip", **DINO_SIZES)
    model = load_whole(who, model, read_weights(who, weights), weights).to(device)

    def features(frame_NCHW: torch.Tensor) -> torch.Tensor:
        patch_NLD = model.patch_embed.proj(frame_NCHW).flatten(2).mT
        token_NLD = torch.cat([model.cls_token.expand(len(patch_NLD), -1, -1), patch_NLD], dim=1)
        token_NLD = token_NLD + dino_places(model.pos_embed, *frame_NCHW.shape[2:], DINO_SIZES["patch_size"])
        return model.norm(model.blocks(token_NLD))[:, 0]

    protocol = {"backbone": f"DINO ViT-B/16, weights SHA-256 {digest[:16]}", "resolution": f"shorter side {SIDE}"}
    encode = lambda video_FCHW: in_chunks(features, prepared(video_FCHW, "bilinear", IMAGENET_MEAN, IMAGENET_STD), device)  # noqa: E731
    return FrameEncoder(column, encode, protocol)


def dino_places(embedding_1LD: torch.Tensor, height: int, width: int, patch: int) -> torch.Tensor:
    """DINO's embeddings of the class token's and the patches' places in a frame of this size: (1, 1 + rows · columns, D).

    The published code resizes the trained grid, bicubic, by the factors (rows + 0.1)/14 and (columns + 0.1)/14 instead of to
    that many rows and columns, which samples it at slightly other points.
    """
    grid, rows, columns = isqrt(embedding_1LD.shape[1] - 1), height // patch, width // patch
    if (rows, columns) == (grid, grid) and height == width:
        return embedding_1LD
    plane_1Dhw = embedding_1LD[:, 1:].mT.unflatten(2, (grid, grid))
    factors = ((rows + 0.1) / grid, (columns + 0.1) / grid)
    resized_1Dhw = functional.interpolate(plane_1Dhw, scale_factor=factors, mode="bicubic")
    return torch.cat([embedding_1LD[:, :1], resized_1Dhw.flatten(2).mT], dim=1)


def clip_encoder(path: Path, device: str | torch.device = "cpu") -> FrameEncoder:
    """`background_consistency`: OpenAI's CLIP ViT-B/32, frames with their shorter side at 224 pixels, the middle.

    ``path``: OpenAI's ViT-B-32.pt (MIT), or a folder of open_clip of the same network, which fills `frame_consistency_clip`.
    """
    encode, digest = clip_tower("background_consistency", path, FILES["clip_b32"], device)
    column = "background_consistency" if digest == FILES["clip_b32"].sha256 else "frame_consistency_clip"
    protocol = {"backbone": f"CLIP ViT-B/32, weights SHA-256 {digest[:16]}", "resolution": f"{SIDE}, centre crop"}
    return FrameEncoder(column, encode, protocol)


def clip_tower(metric: str, path: Path, clip: VBenchFile, device: str | torch.device) -> tuple[Encode, str]:
    """The image tower, and the SHA-256 of the file of weights; VBench runs it in half precision on a GPU, here it is single.

    ``path``: OpenAI's archive (it holds code, so it is read only if its hash is OpenAI's), a folder that holds it, or a folder of
    open_clip of the same network: the weights alone do not tell its activation.
    """
    import open_clip

    who, archive = f"metric {metric!r}", path / clip.archive if path.is_dir() else path
    try:
        if archive.is_file() or not path.is_dir():
            _, digest = clip.column(metric, archive)
            model = open_clip.load_openai_model(str(archive), precision="fp32", device="cpu")
        else:
            weights = next((path / name for name in CLIP_FILES if (path / name).is_file()), None)
            if weights is None:
                raise InputError(f"{who}: {path} holds neither {' nor '.join((clip.archive, *CLIP_FILES))}; fetch {clip.source}")
            if read_object(path / CONFIG, who).get("model_cfg") != open_clip.get_model_config(clip.network):
                raise InputError(f"{who}: {path / CONFIG} describes another network than {clip.network}; fetch {clip.source}")
            digest, model = sha256(weights), open_clip.create_model(clip.network, precision="fp32")
            load_whole(who, model, read_weights(who, weights), weights)
    except RuntimeError as error:
        raise InputError(f"{who}: {path} cannot be read ({one_line(error)}); fetch {clip.source}") from error
    tower = model.visual.to(device).eval().requires_grad_(False)
    return lambda video_FCHW: in_chunks(tower, prepared(video_FCHW, "bicubic", CLIP_MEAN, CLIP_STD, crop=True), device), digest


def prepared(video_FCHW: torch.Tensor, mode: str, mean: Sequence[float], std: Sequence[float], crop=False) -> torch.Tensor:
    """Shorter side to 224 without antialiasing, as VBench does: of a file's 256 levels, and not rounded to them again."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    pixels = transforms.resize((video_FCHW.float() * 255).round(), [SIDE], InterpolationMode(mode), antialias=False)
    return transforms.normalize((transforms.center_crop(pixels, [SIDE, SIDE]) if crop else pixels) / 255, mean, std)


@torch.inference_mode()
def in_chunks(encode: Encode, video_FCHW: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    """Features on the CPU."""
    return torch.cat([encode(chunk.to(device)).float().cpu() for chunk in video_FCHW.split(CHUNK)])
