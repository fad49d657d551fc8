"""Motion metrics of single videos, after VBench (Huang et al. 2024) where it defines them.

A metric bears VBench's name only where backbone and rule are VBench's own or no backbone is involved; any other ends in its
backbone: `dynamic_degree_dis`. A frozen video has the best smoothness, flicker, warping error and consistency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from eval.media import check_video
from eval.metrics.encoders import FrameEncoder
from eval.metrics.flow import MIN_SIDE, DisFlow, Flow, unpadded, warp
from otca.errors import InputError

MOTION_FPS = 8  # rate to which dynamic degree subsamples
PADDED = f"edges repeated up to whole eights, and counted; none below {MIN_SIDE} pixels a side"


@dataclass(frozen=True)
class DynamicDegree:
    """Whether a video moves, and how much."""

    moves: float  # 1 or 0
    top_flow: float  # mean over pairs of the top-5 % flow, pixels a frame at 8 fps
    vbench: float = float("nan")  # VBench's own verdict, unless the flow is not its own, or the frames are too small for it


def dynamic_degree(video_FCHW: torch.Tensor, fps: float, flow: Flow) -> DynamicDegree:
    """Does the video move?

    Every round(fps/8)-th frame is kept, N in all. A pair of neighbours moves if the mean length of its longest 5 % of flow
    vectors exceeds 6·min(H, W)/256 pixels; a video moves if at least round(4N/16) pairs do, and at least one. Below 8 fps every
    frame is kept and the threshold stays, so slower rates look more dynamic.

    VBench takes the longest 5 % of the flow of the padded frames, padding included, and asks for no pair where round(4N/16) is 0
    (halves go to even): any video of which it keeps two frames moves. Raises InputError where fewer than two frames are kept.
    """
    kept_FCHW = video_FCHW[:: max(1, round(fps / MOTION_FPS))]
    if len(kept_FCHW) < 2:
        raise InputError(f"video of {len(video_FCHW)} frames at {fps:g} fps keeps one at {MOTION_FPS} fps, 2 are needed")
    height, width = video_FCHW.shape[2:]
    threshold, needed, verdict = 6 * min(height, width) / 256, round(4 * len(kept_FCHW) / 16), float("nan")
    as_vbench = getattr(flow, "vbench", False) and min(height, width) >= MIN_SIDE  # any function of two frames may be a flow
    fields = [(flow.padded if as_vbench else flow)(a, b) for a, b in pairwise(kept_FCHW)]
    if as_vbench:
        verdict = float(sum(longest_flow(field_HW2, 0.05) > threshold for field_HW2 in fields) >= needed)
        fields = [unpadded(field_HW2, height, width) for field_HW2 in fields]
    own = [longest_flow(field_HW2, 0.05) for field_HW2 in fields]
    moves = sum(length > threshold for length in own) >= max(1, needed)
    return DynamicDegree(float(moves), float(np.mean(own)), verdict)


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
    """VBench's (255 − mean |f_i − f_{i+1}|)/255 with frames in 0 … 255: 1 is frozen; motion lowers it as much as flicker."""
    return float(1 - (video_FCHW[1:] - video_FCHW[:-1]).abs().mean(dtype=torch.float64))


def _channels_last(frame_CHW: torch.Tensor) -> np.ndarray:
    return frame_CHW.float().permute(1, 2, 0).contiguous().cpu().numpy()


class MotionMetrics:
    """Every motion metric of a video, dynamic degree beside smoothness; ``protocol`` has what to print with each column."""

    def __init__(self, flow: Flow | None = None, encoders: Sequence[FrameEncoder] = ()):
        self.flow, self.encoders = flow or DisFlow(), tuple(encoders)
        suffix, base = f"_{self.flow.name}", self.flow.protocol
        rule, given = {"fps": f"{MOTION_FPS}", "rule": "VBench"}, {"fps": "as given"}
        self.protocol: dict[str, dict[str, str]] = {
            **({"dynamic_degree": base | rule | {"resolution": PADDED}} if self.flow.vbench else {}),
            f"dynamic_degree{suffix}": base | rule,
            f"top_flow{suffix}": base | {"fps": f"{MOTION_FPS}", "unit": "pixels a frame"},
            f"motion_smoothness{suffix}": base | given | {"interpolation": "both neighbours warped by half the flow"},
            f"warping_error{suffix}": base | given | {"unit": "squared intensity", "mask": "forward-backward"},
            "temporal_flickering": {"backbone": "none", **given},
            **{encoder.column: encoder.protocol | given for encoder in self.encoders},
        }
        self.columns = tuple(self.protocol)

    def score(self, video_FCHW: torch.Tensor, fps: float) -> dict[str, float]:
        """One value a column, in order, for one video (F, 3, H, W) in [0, 1], F ≥ 3. Raises InputError for others."""
        check_video(video_FCHW, 3)
        degree = dynamic_degree(video_FCHW, fps, self.flow)
        values = (
            *([degree.vbench] if self.flow.vbench else []),
            degree.moves,
            degree.top_flow,
            motion_smoothness(video_FCHW, self.flow),
            warping_error(video_FCHW, self.flow),
            temporal_flickering(video_FCHW),
            *(encoder.score(video_FCHW) for encoder in self.encoders),
        )
        return dict(zip(self.columns, values))
