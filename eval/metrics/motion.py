"""Motion metrics of single videos, after VBench (Huang et al. 2024) where it defines them.

Names of columns: a metric bears VBench's name only where its backbone is VBench's own or none is involved
(`temporal_flickering`; `dynamic_degree` with the raft-things weights; `subject_consistency` with DINO ViT-B/16;
`background_consistency` with CLIP ViT-B/32). Any other metric ends in its backbone: `dynamic_degree_dis`,
`motion_smoothness_raft`, `frame_consistency_embedded`. Numbers of different columns are not comparable.

| column | range, better | what it says |
|---|---|---|
| dynamic_degree | 0 or 1 a video, its mean the share that moves | see `dynamic_degree`; VBench's rule |
| top_flow_<flow> | ≥ 0 pixels a frame at 8 fps, neither | mean over pairs of the top 5 % of flow lengths |
| motion_smoothness_<flow> | 0 to 1, higher | every other frame, predicted from its neighbours (VBench interpolates by AMT-S) |
| warping_error_<flow> | 0 to 1, lower | squared change of visible points from frame to frame |
| temporal_flickering | 0 to 1, higher | 1 − mean absolute change; for static scenes: all motion lowers it |
| <what>_consistency | 0 to 1, higher | likeness of frames to the one before and to the first |

A frozen video has the best smoothness, flicker, warping error and consistency: read them beside dynamic degree, as
`MotionMetrics` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from eval.metrics.alignment import embedded_clip
from eval.metrics.flow import DisFlow, Flow, warp
from eval.videos import check_video
from otca.errors import InputError, one_line
from otca.files import sha256
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.untrusted import read_object

MOTION_FPS = 8
"""Rate to which dynamic degree subsamples."""
_CHUNK = 32
"""Frames a forward pass of an encoder."""


@dataclass(frozen=True)
class DynamicDegree:
    """``moves``: 1.0 or 0.0; ``top_flow``: mean over pairs of the top-5 % flow, pixels a frame at 8 fps."""

    moves: float
    top_flow: float


def dynamic_degree(video_FCHW: torch.Tensor, fps: float, flow: Flow) -> DynamicDegree:
    """VBench's rule: does the video move?

    Every round(fps/8)-th frame is kept, N in all. A pair of neighbours moves if the mean length of its longest 5 % of flow
    vectors exceeds 6·min(H, W)/256 pixels; a video moves if at least round(4N/16) pairs do (one, where that rounds to 0).
    Below 8 fps every frame is kept and the threshold stays, so slower rates look more dynamic.
    """
    check_video(video_FCHW, 2)
    if not 0 < fps < float("inf"):
        raise InputError(f"fps {fps} must be positive")
    kept_FCHW = video_FCHW[:: max(1, round(fps / MOTION_FPS))]
    if len(kept_FCHW) < 2:
        raise InputError(f"video of {len(video_FCHW)} frames at {fps:g} fps keeps one at {MOTION_FPS} fps, 2 are needed")
    longest = [longest_flow(flow(a, b), 0.05) for a, b in pairwise(kept_FCHW)]
    threshold = 6 * min(video_FCHW.shape[2:]) / 256
    moving = sum(length > threshold for length in longest)
    return DynamicDegree(float(moving >= max(1, round(4 * len(kept_FCHW) / 16))), float(np.mean(longest)))


def longest_flow(flow_HW2: np.ndarray, share: float) -> float:
    """Mean length of the longest ``share`` of the flow vectors, pixels."""
    lengths = np.linalg.norm(flow_HW2, axis=-1).ravel()
    count = max(1, int(share * lengths.size))
    return float(np.partition(lengths, -count)[-count:].mean())


def motion_smoothness(video_FCHW: torch.Tensor, flow: Flow) -> float:
    """1 − mean absolute error of every odd frame, predicted halfway between its even neighbours: 0 to 1, higher is smoother.

    VBench's definition with its network, AMT-S, replaced: the neighbours a, b are warped by half of the motion between them
    (the mean of the flow and the reversed flow) and averaged. An even number of frames leaves the last one out.
    """
    check_video(video_FCHW, 3)
    errors = []
    for a, truth, b in zip(video_FCHW[:-2:2], video_FCHW[1:-1:2], video_FCHW[2::2]):
        half_HW2 = (flow(a, b) - flow(b, a)) / 4
        middle_HWC = (warp(_channels_last(a), -half_HW2) + warp(_channels_last(b), half_HW2)) / 2
        errors.append(np.abs(middle_HWC - _channels_last(truth)).mean(dtype=np.float64))
    return float(1 - np.mean(errors))


def warping_error(video_FCHW: torch.Tensor, flow: Flow) -> float:
    """Mean squared difference of neighbours once motion is undone (Lai et al. 2018): 0 to 1, lower is steadier.

    Frame t is warped onto frame t + 1 by the flow from t + 1 back to t. Points count if visible in both: they come from
    inside the frame, and flow and reversed flow cancel, |f + b|² ≤ 0.01 (|f|² + |b|²) + 0.5 (Ruder et al. 2016). Mean
    over channels and visible points (over all points where none is visible), then over pairs.
    """
    check_video(video_FCHW, 2)
    height, width = video_FCHW.shape[2:]
    y, x = np.mgrid[:height, :width]
    errors = []
    for a, b in pairwise(video_FCHW):
        back_HW2 = flow(b, a)
        forth_HW2 = warp(flow(a, b), back_HW2)
        gap, scale = ((forth_HW2 + back_HW2) ** 2).sum(-1), (forth_HW2**2 + back_HW2**2).sum(-1)
        source_x, source_y = x + back_HW2[..., 0], y + back_HW2[..., 1]
        inside = (source_x >= 0) & (source_x <= width - 1) & (source_y >= 0) & (source_y <= height - 1)
        visible = inside & (gap <= 0.01 * scale + 0.5)
        squared_HWC = (warp(_channels_last(a), back_HW2) - _channels_last(b)) ** 2
        errors.append(squared_HWC[visible if visible.any() else ...].mean(dtype=np.float64))
    return float(np.mean(errors))


def temporal_flickering(video_FCHW: torch.Tensor) -> float:
    """VBench's score (255 − mean |f_i − f_{i+1}|)/255 with frames in 0 … 255: 1 for a frozen video, higher is steadier.

    VBench computes it on static scenes alone; elsewhere it measures motion as much as flicker.
    """
    check_video(video_FCHW, 2)
    return float(1 - (video_FCHW[1:] - video_FCHW[:-1]).abs().mean(dtype=torch.float64))


def consistency(feature_FD: torch.Tensor) -> float:
    """VBench's mean over frames i ≥ 1 of ½ [max(0, cos(f_{i−1}, f_i)) + max(0, cos(f_0, f_i))]: 0 to 1, higher is steadier."""
    if feature_FD.ndim != 2 or len(feature_FD) < 2:
        raise InputError(f"consistency needs features (F, D) of at least 2 frames, got {tuple(feature_FD.shape)}")
    unit_FD = torch.nn.functional.normalize(feature_FD.double(), dim=1)
    before, first = (unit_FD[:-1] * unit_FD[1:]).sum(1), unit_FD[1:] @ unit_FD[0]
    return float((before.clamp(min=0) + first.clamp(min=0)).mean() / 2)


def _channels_last(frame_CHW: torch.Tensor) -> np.ndarray:
    return frame_CHW.float().permute(1, 2, 0).contiguous().cpu().numpy()


# ------------------------------------------------------------------------------------------------------- frame encoders


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
            video_FCHW = torch.nn.functional.interpolate(video_FCHW, (side, side), mode="bilinear", antialias=True)
        return clip.image_features(video_FCHW.unsqueeze(1))

    return FrameEncoder("frame_consistency_embedded", encode, {"backbone": f"embedded open_clip model, {side}×{side}"})


DINO_SHAPE = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16}
"""What the config of DINO ViT-B/16 says."""

CLIP_SHAPE = {"image_size": 224, "width": 768, "layers": 12, "patch_size": 32}
"""What the vision_cfg of CLIP ViT-B/32 says."""


def dino_encoder(folder: Path, device: str | torch.device = "cpu") -> FrameEncoder:
    """`subject_consistency`: DINO ViT-B/16 (a transformers folder of facebook/dino-vitb16), shorter side 224, class token."""
    from transformers import ViTModel

    shape = _read_config(folder / "config.json", "facebook/dino-vitb16")
    _refuse_others(folder, "DINO ViT-B/16", shape, DINO_SHAPE)
    with _named(folder):
        model, report = ViTModel.from_pretrained(folder, local_files_only=True, add_pooling_layer=False, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"frame encoder {folder} lacks {len(missing)} weights of a ViT: {', '.join(missing[:3])}"
            f"{', …' if len(missing) > 3 else ''}; download it again"
        )
    model = model.to(device).eval()

    def encode(video_FCHW: torch.Tensor) -> torch.Tensor:
        resized = _resize(video_FCHW, "bilinear", crop=False)
        normal = _normalize(resized, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return _in_chunks(lambda x: model(x, interpolate_pos_encoding=True).last_hidden_state[:, 0], normal, device)

    return FrameEncoder("subject_consistency", encode, _protocol(folder, "DINO ViT-B/16", "shorter side 224"))


def clip_encoder(folder: Path, device: str | torch.device = "cpu") -> FrameEncoder:
    """`background_consistency`: CLIP ViT-B/32 (an open_clip folder, OpenAI weights), shorter side 224, centre crop."""
    encode = openai_clip(folder, "CLIP ViT-B/32", CLIP_SHAPE, "timm/vit_base_patch32_clip_224.openai", device)
    return FrameEncoder("background_consistency", encode, _protocol(folder, "CLIP ViT-B/32", "224, centre crop"))


def openai_clip(
    folder: Path, name: str, wanted: dict[str, int], hub: str, device: str | torch.device
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Frames (F, 3, H, W) in [0, 1] → features (F, D) of an image tower of OpenAI's CLIP, from the open_clip folder of ``hub``.

    ``wanted``: what the folder's ``vision_cfg`` must say. Raises InputError naming a folder that holds another model.
    """
    import open_clip

    config = _read_config(folder / "open_clip_config.json", hub)
    _refuse_others(folder, name, config["model_cfg"]["vision_cfg"], wanted)
    _refuse_others(folder, "CLIP of OpenAI", config["model_cfg"], {"quick_gelu": True})
    with _named(folder):
        model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).to(device).eval()

    def encode(video_FCHW: torch.Tensor) -> torch.Tensor:
        resized = _resize(video_FCHW, "bicubic", crop=True)
        return _in_chunks(model.encode_image, _normalize(resized, CLIP_MEAN, CLIP_STD), device)

    return encode


def _read_config(path: Path, hub: str) -> dict:
    if not path.is_file():
        raise InputError(f"frame encoder: {path} not found; download {hub} and give its folder")
    return read_object(path, "frame encoder")


def _refuse_others(folder: Path, name: str, found: dict, wanted: dict) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise InputError(f"frame encoder {folder} is no {name}: {key} is {found.get(key)!r}, not {value!r}")


def _protocol(folder: Path, backbone: str, resolution: str) -> dict[str, str]:
    weights = next(p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".bin"))
    return {"backbone": f"{backbone}, weights SHA-256 {sha256(weights)[:16]}", "resolution": resolution}


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Errors of a loader become InputErrors that name the folder."""
    try:
        yield
    except Exception as error:  # loaders raise many kinds
        raise InputError(f"frame encoder {folder} cannot be loaded ({one_line(error)})") from error


def _resize(video_FCHW: torch.Tensor, mode: str, crop: bool) -> torch.Tensor:
    """Shorter side to 224 without antialiasing, as VBench does: of a file's 256 levels, and not rounded to them again."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    pixels = (video_FCHW.float() * 255).round()
    pixels = transforms.resize(pixels, [224], InterpolationMode(mode), antialias=False)
    return (transforms.center_crop(pixels, [224, 224]) if crop else pixels) / 255


def _normalize(video_FCHW: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return (video_FCHW - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.inference_mode()
def _in_chunks(encode: Callable, video_FCHW: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    return torch.cat([encode(chunk.to(device)).float().cpu() for chunk in video_FCHW.split(_CHUNK)])


# ------------------------------------------------------------------------------------------------------------- together


class MotionMetrics:
    """Every motion metric of a video, dynamic degree beside smoothness; ``protocol`` has what to print with each column."""

    def __init__(self, flow: Flow | None = None, encoders: Sequence[FrameEncoder] = ()):
        self.flow = flow or DisFlow()
        self.encoders = tuple(encoders)
        suffix, base = f"_{self.flow.name}", self.flow.protocol
        self.protocol: dict[str, dict[str, str]] = {
            "dynamic_degree" + suffix * (not self.flow.vbench): base | {"fps": f"{MOTION_FPS}", "rule": "VBench"},
            "top_flow" + suffix: base | {"fps": f"{MOTION_FPS}", "unit": "pixels a frame"},
            "motion_smoothness" + suffix: base | {"fps": "as given", "interpolation": "both neighbours warped by half the flow"},
            "warping_error" + suffix: base | {"fps": "as given", "unit": "squared intensity", "mask": "forward-backward"},
            "temporal_flickering": {"backbone": "none", "fps": "as given"},
        } | {e.column: e.protocol | {"fps": "as given"} for e in self.encoders}
        self.columns = tuple(self.protocol)

    def score(self, video_FCHW: torch.Tensor, fps: float) -> dict[str, float]:
        """One value a column, in order, for one video (F, 3, H, W) in [0, 1], F ≥ 3. Raises InputError for others."""
        check_video(video_FCHW, 3)
        degree = dynamic_degree(video_FCHW, fps, self.flow)
        values = (
            degree.moves,
            degree.top_flow,
            motion_smoothness(video_FCHW, self.flow),
            warping_error(video_FCHW, self.flow),
            temporal_flickering(video_FCHW),
            *(consistency(e.encode(video_FCHW)) for e in self.encoders),
        )
        return dict(zip(self.columns, values))
