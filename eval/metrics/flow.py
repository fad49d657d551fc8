"""Dense optical flow for the motion metrics: RAFT where its weights are at hand, else DIS, which needs none.

A flow is a function of two frames (3, H, W) in [0, 1] that returns (H, W, 2) float32 pixels (x, y): what lies at p in the
first frame lies at p + flow[p] in the second. It also has a ``name`` (the suffix of metric columns), a ``protocol``, and
``vbench``, true where it is the very backbone of VBench. Frames with a side below 128 pixels are enlarged by a whole factor
and the flow divided by it: RAFT is not defined on smaller ones, and DIS (which is defined from 12 pixels on) gains.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch

from otca.errors import InputError, one_line
from otca.files import sha256

MIN_SIDE = 128
RAFT_THINGS_SHA256 = "22a6c225"
"""Start of the SHA-256 of torchvision's ``raft_large_C_T_V1``: the published raft-things weights, which VBench uses."""
RAFT_UPDATES = 20


class Flow(Protocol):
    """What the metrics ask of a backend."""

    name: str
    vbench: bool
    protocol: dict[str, str]

    def __call__(self, first_CHW: torch.Tensor, second_CHW: torch.Tensor) -> np.ndarray: ...


class DisFlow:
    """Dense inverse search (Kroeger et al. 2016) of OpenCV, which sees one channel: colour along its principal axis.

    Luminance would hide what moves over a background as bright as itself. Objects of less than about a sixth of a side are
    underestimated.
    """

    name = "dis"
    vbench = False
    protocol: ClassVar[dict[str, str]] = {
        "backbone": "OpenCV DISOpticalFlow, preset medium, on the principal colour axis of the two frames",
        "resolution": f"as given, enlarged by a whole factor to at least {MIN_SIDE} pixels a side",
    }

    def __init__(self):
        import cv2

        cv2.setNumThreads(torch.get_num_threads())  # as many as torch has; the flow does not depend on it
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first_CHW: torch.Tensor, second_CHW: torch.Tensor) -> np.ndarray:
        import cv2

        height, width = first_CHW.shape[1:]
        factor = _factor(height, width)
        gray = _principal_channel(first_CHW, second_CHW)
        if factor == 1:
            return self._search.calc(*gray, None)
        gray = [cv2.resize(g, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC) for g in gray]
        flow = self._search.calc(*gray, None)
        return cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / np.float32(factor)


class RaftFlow:
    """RAFT (Teed & Deng 2020), torchvision's large model, 20 updates, weights from a local file.

    Raises InputError for a file that is missing or holds other weights; nothing but tensors is ever unpickled.
    """

    name = "raft"

    def __init__(self, weights: Path, device: str | torch.device = "cpu"):
        from torchvision.models.optical_flow import raft_large

        if not weights.is_file():
            raise InputError(f"RAFT weights {weights} not found; fetch torchvision's raft_large_C_T_V1-22a6c225.pth")
        self.model = raft_large(weights=None)
        try:
            self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # unpickling raises many kinds
            raise InputError(f"RAFT weights {weights} do not fit torchvision's raft_large ({one_line(error)})") from error
        self.model = self.model.to(device).eval()
        digest = sha256(weights)
        self.vbench = digest.startswith(RAFT_THINGS_SHA256)
        self.protocol = {
            "backbone": f"torchvision raft_large, {RAFT_UPDATES} updates, weights SHA-256 {digest[:16]}",
            "resolution": DisFlow.protocol["resolution"],
        }

    @torch.inference_mode()
    def __call__(self, first_CHW: torch.Tensor, second_CHW: torch.Tensor) -> np.ndarray:
        from torch.nn import functional

        height, width = first_CHW.shape[1:]
        factor = _factor(height, width)
        pair = torch.stack([first_CHW, second_CHW]).to(next(self.model.parameters()))
        if factor > 1:
            pair = functional.interpolate(pair, scale_factor=factor, mode="bicubic").clamp(0, 1)
        missing_y, missing_x = -height * factor % 8, -width * factor % 8
        top, left = missing_y // 2, missing_x // 2
        pair = functional.pad(pair * 2 - 1, (left, missing_x - left, top, missing_y - top), mode="replicate")
        flow = self.model(pair[:1], pair[1:], num_flow_updates=RAFT_UPDATES)[-1]
        flow = flow[:, :, top : top + height * factor, left : left + width * factor]
        return (functional.avg_pool2d(flow, factor) / factor)[0].permute(1, 2, 0).float().cpu().numpy()


def load_flow(raft_weights: Path | None = None, device: str | torch.device = "cpu") -> Flow:
    """RAFT if its weights file is given, else DIS."""
    return DisFlow() if raft_weights is None else RaftFlow(raft_weights, device)


def warp(image_HWC: np.ndarray, flow_HW2: np.ndarray) -> np.ndarray:
    """The image sampled at p + flow[p] (bilinear; beyond the edge, the edge's value), float32; a zero flow changes nothing."""
    import cv2

    height, width = flow_HW2.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    mode = cv2.BORDER_REPLICATE
    return cv2.remap(image_HWC, x + flow_HW2[..., 0], y + flow_HW2[..., 1], cv2.INTER_LINEAR, borderMode=mode)


def _principal_channel(first_CHW: torch.Tensor, second_CHW: torch.Tensor) -> list[np.ndarray]:
    """Both frames as (H, W) uint8: colours projected on their axis of most variance, [0, 1]³ just filling 0 … 255."""
    color_3N = np.concatenate([f.float().cpu().numpy().reshape(3, -1) for f in (first_CHW, second_CHW)], axis=1)
    spread_3N = color_3N - color_3N.mean(axis=1, keepdims=True)
    axis_3 = np.linalg.eigh(spread_3N @ spread_3N.T)[1][:, -1]
    axis_3 = (axis_3 if axis_3.sum() >= 0 else -axis_3) / np.abs(axis_3).sum()
    channel_N = axis_3 @ color_3N - np.minimum(axis_3, 0).sum()
    return list(np.rint(255 * channel_N.clip(0, 1)).astype(np.uint8).reshape(2, *first_CHW.shape[1:]))


def _factor(height: int, width: int) -> int:
    return max(1, -(-MIN_SIDE // min(height, width)))
