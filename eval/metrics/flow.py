"""Dense optical flow for the motion metrics: RAFT where its weights are at hand, else DIS, which needs none.

A flow is a function of two frames (3, H, W) in [0, 1] that returns (H, W, 2) float32 pixels (x, y): what lies at p in the
first frame lies at p + flow[p] in the second. Frames with a side below 128 pixels are enlarged by a whole factor and the flow
divided by it: RAFT is not defined on smaller ones, and DIS (which is defined from 12 pixels on) gains.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from eval.metrics.encoders import FILES, VBENCH
from otca.errors import InputError
from otca.rewards.published import load_whole, read_weights

MIN_SIDE = 128
RAFT_UPDATES = 20
RESOLUTION = f"as given, enlarged by a whole factor to at least {MIN_SIDE} pixels a side"

class DisFlow:
    """Dense inverse search (Kroeger et al. 2016) of OpenCV, which sees one channel: colour along its principal axis.

    Luminance would hide what moves over a background as bright as itself. Objects below a sixth of a side are underestimated.
    """

    name, vbench = "dis", False  # suffix of columns; whether the weights are the very ones of VBench
    protocol: ClassVar[dict[str, str]] = {
        "backbone": "OpenCV DISOpticalFlow, preset modality, on the principal colour axis of the two frames",
        "resolution": RESOLUTION,
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
        gray = [cv2.resize(g, (width * factor, height * factor), interpolation=cv2.INTER_CUBIC) for g in gray]
        flow = self._search.calc(*gray, None)
        return cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) / np.float32(factor)


class RaftFlow:
    """RAFT (Teed & Deng 2020), torchvision's large model, 20 updates; weights in torchvision's layout or princeton-vl/RAFT's.

    Only raft-things.pth itself, told by its SHA-256, is VBench's; others fill ``dynamic_degree_raft``. Licence of
    princeton-vl/RAFT: BSD-3-Clause; for the weights none is stated apart.
    """

    name = "raft"

    def __init__(self, weights: Path, device: str | torch.device = "cpu"):
        from torchvision.models.optical_flow import raft_large

        column, digest = FILES["raft"].column("dynamic_degree", weights, "dynamic_degree_raft")
        self.vbench, who = column == "dynamic_degree", f"metric {column!r}"
        tensors = read_weights(who, weights)
        if any("fnet." in name for name in tensors):
            tensors = {torchvision_name(name): value for name, value in tensors.items() if ".norm3." not in name}
        self.model = load_whole(who, raft_large(weights=None), tensors, weights).to(device)
        backbone = f"torchvision raft_large, {RAFT_UPDATES} updates, weights SHA-256 {digest[:16]}"
        self.protocol = {"backbone": backbone, "resolution": RESOLUTION}

    def __call__(self, first_CHW: torch.Tensor, second_CHW: torch.Tensor) -> np.ndarray:
        height, width = first_CHW.shape[1:]
        factor = _factor(height, width)
        pair = torch.stack([first_CHW, second_CHW]).to(next(self.model.parameters()))
        if factor > 1:
            pair = functional.interpolate(pair, scale_factor=factor, mode="bicubic").clamp(0, 1)
        flow_HW2 = unpadded(self._padded(pair), height * factor, width * factor)
        return flow_HW2.reshape(height, factor, width, factor, 2).mean(axis=(1, 3)) / np.float32(factor)

    def padded(self, first_CHW: torch.Tensor, second_CHW: torch.Tensor) -> np.ndarray:
        """The flow of the frames with their edges repeated up to sides of whole eights, over all of that: so VBench reads it."""
        height, width = first_CHW.shape[1:]
        if min(height, width) < MIN_SIDE:
            raise InputError(f"frames of {width}×{height} pixels are too small for VBench's RAFT, which needs {MIN_SIDE} a side")
        return self._padded(torch.stack([first_CHW, second_CHW]))

    @torch.inference_mode()
    def _padded(self, pair_2CHW: torch.Tensor) -> np.ndarray:
        missing_y, missing_x = (-side % 8 for side in pair_2CHW.shape[2:])
        top, left = missing_y // 2, missing_x // 2
        pair = pair_2CHW.to(next(self.model.parameters())) * 2 - 1
        pair = functional.pad(pair, (left, missing_x - left, top, missing_y - top), mode="replicate")
        flow = self.model(pair[:1], pair[1:], num_flow_updates=RAFT_UPDATES)[-1]
        return flow[0].permute(1, 2, 0).float().cpu().numpy()


Flow = DisFlow | RaftFlow


def torchvision_name(name: str) -> str:
    """torchvision's name of a tensor of princeton-vl/RAFT, which names some tensors twice: ``norm3`` is ``downsample.1``."""
    name = name.removeprefix("module.")
    for theirs, ours in VBENCH["raft_names"].items():
        name = re.sub(theirs, ours, name)
    return name


def unpadded(flow_HW2: np.ndarray, height: int, width: int) -> np.ndarray:
    """The flow of the frames themselves (height, width, 2), from `RaftFlow.padded`."""
    top, left = (-height % 8) // 2, (-width % 8) // 2
    return flow_HW2[top : top + height, left : left + width]


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
