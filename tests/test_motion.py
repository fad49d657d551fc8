"""Motion metrics with known answers: known speeds, frozen, jittered, reversed and dissolving videos, VBench's formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.metrics.encoders import consistency
from eval.metrics.flow import DisFlow, warp
from eval.metrics.motion import MotionMetrics, dynamic_degree, motion_smoothness, temporal_flickering, warping_error
from otca.errors import InputError
from tests.samples import texture

SIDE = 24  # of the moving square, pixels


def square_video(left: list[int], top: int = 20, size: int = 64, side: int = SIDE) -> torch.Tensor:
    """A textured square at the given left edges, over a still texture: (F, 3, size, size)."""
    frames = np.stack([texture(size, size, 0)] * len(left))
    for frame, x in zip(frames, left):
        frame[:, top : top + side, x : x + side] = texture(side, side, 1)
    return torch.from_numpy(frames)


STEADY = square_video([6 + 3 * i for i in range(9)])
FROZEN = STEADY[:1].repeat(9, 1, 1, 1)
DIS = DisFlow()


@pytest.mark.parametrize(("size", "side"), [(64, 24), (160, 60)])
def test_dis_measures_a_square_at_three_pixels_a_frame(size, side):
    video = square_video([10, 13], 20, size, side)
    for first, second, left, speed in ((0, 1, 10, 3), (1, 0, 13, -3)):
        on_square = DIS(video[first], video[second])[20 : 20 + side, left : left + side].reshape(-1, 2)
        assert np.median(on_square, axis=0) == pytest.approx([speed, 0], abs=0.3)


def test_dis_sees_motion_between_colours_of_equal_luminance():
    """Red of luminance 0.299 on such a grey, which a grey-scale flow would take for nothing."""
    video = torch.full((2, 3, 64, 64), 0.299)
    for frame, left in zip(video, (20, 22)):
        frame[:, 20:44, left : left + SIDE] = torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    assert np.median(DIS(video[0], video[1])[22:42, 22:42, 0]) == pytest.approx(2, abs=0.3)


def test_warp_by_nothing_changes_nothing_and_by_a_shift_shifts():
    image = texture(16, 20, 0).transpose(1, 2, 0).copy()
    zero = np.zeros((16, 20, 2), np.float32)
    assert (warp(image, zero) == image).all()
    shifted = warp(image, zero + np.float32([2, 0]))
    assert np.allclose(shifted[:, :-2], image[:, 2:]) and np.allclose(shifted[:, -2:], image[:, -1:])


def test_a_frozen_video_is_perfect_but_not_dynamic():
    values = MotionMetrics().score(FROZEN, 8)
    assert values == {
        "dynamic_degree_dis": 0.0,
        "top_flow_dis": 0.0,
        "motion_smoothness_dis": 1.0,
        "warping_error_dis": 0.0,
        "temporal_flickering": 1.0,
    }


def test_a_moving_square_is_dynamic_and_its_top_flow_is_its_speed():
    degree = dynamic_degree(STEADY, 8, DIS)
    assert degree.moves == 1 and degree.top_flow == pytest.approx(3, abs=0.3)


@pytest.mark.parametrize(("speed", "moves"), [(1.4, 0.0), (1.6, 1.0)])
def test_dynamic_degree_has_vbenchs_threshold(speed, moves):
    """6·64/256 = 1.5 pixels."""
    assert dynamic_degree(FROZEN, 8, lambda a, b: np.full((64, 64, 2), (speed, 0.0))).moves == moves


def test_dynamic_degree_looks_at_the_top_five_percent():
    flow = np.zeros((64, 64, 2))
    flow.reshape(-1, 2)[:204] = (3.0, 4.0)  # int(0.05 · 4096) = 204
    assert dynamic_degree(FROZEN, 8, lambda a, b: flow).top_flow == pytest.approx(5)
    flow.reshape(-1, 2)[:102] = 0
    assert dynamic_degree(FROZEN, 8, lambda a, b: flow).top_flow == pytest.approx(2.5)


@pytest.mark.parametrize(("frames", "fps", "needed"), [(9, 8, 2), (16, 8, 4), (17, 16, 2), (33, 24, 3), (2, 8, 1), (9, 3, 2)])
def test_dynamic_degree_needs_a_quarter_of_the_frames_at_eight_a_second(frames, fps, needed):
    video = torch.zeros(frames, 3, 64, 64)

    def degree(moving: int) -> float:
        lengths = iter([9.0] * moving + [0.0] * frames)
        return dynamic_degree(video, fps, lambda a, b: np.full((64, 64, 2), (next(lengths), 0.0))).moves

    assert degree(needed) == 1 and degree(needed - 1) == 0


def test_jitter_lowers_smoothness_at_equal_mean_speed():
    jitter = square_video([6 + 3 * i + (4 if i % 2 else -4) for i in range(9)])
    assert motion_smoothness(STEADY, DIS) > 0.98
    assert motion_smoothness(jitter, DIS) < motion_smoothness(STEADY, DIS) - 0.02


def test_a_dissolve_raises_warping_error_over_rigid_motion():
    """Both alone and on top of the same motion."""
    other, share = torch.from_numpy(texture(64, 64, 7)), torch.linspace(0, 1, 9).view(9, 1, 1, 1)
    wide = torch.from_numpy(texture(64, 64 + 24, 0))
    pan = torch.stack([wide[..., 3 * i : 3 * i + 64] for i in range(9)])
    assert warping_error(pan, DIS) < 1e-5
    assert warping_error(torch.lerp(FROZEN, other, share), DIS) > 1e-4
    for rigid in (pan, STEADY):
        assert warping_error(torch.lerp(rigid, other, share), DIS) > 2 * warping_error(rigid, DIS)


def test_warping_error_in_closed_form():
    """Without flow it is the mean squared change; with an unreturned flow nothing is visible and all points count."""
    video = torch.stack([torch.full((3, 32, 32), v) for v in (0.2, 0.5)])
    assert warping_error(video, lambda a, b: np.zeros((32, 32, 2), np.float32)) == pytest.approx(0.09, abs=1e-6)
    assert warping_error(video, lambda a, b: np.full((32, 32, 2), 5, np.float32)) == pytest.approx(0.09, abs=1e-6)
    spot = torch.zeros(2, 3, 32, 32)
    spot[1, :, 8, 8] = 1  # appears out of nothing, where the flows of the two directions disagree

    def flow(first, second):
        out = np.zeros((32, 32, 2), np.float32)
        out[8, 8, 0] = 4
        return out

    assert warping_error(spot, flow) == 0


def test_flicker_is_one_minus_the_mean_change():
    video = torch.tensor([0.0, 1.0, 0.5]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert temporal_flickering(video) == pytest.approx(1 - 0.75)


def test_bad_input_is_named():
    metrics = MotionMetrics(DIS)
    for video, word in (
        (FROZEN[:2], "has 2 frame.s., at least 3"),
        (FROZEN * 2, "lie in"),
        (FROZEN * np.nan, "lie in"),
        (FROZEN[None], "must be"),
    ):
        with pytest.raises(InputError, match=word):
            metrics.score(video, 8)
    with pytest.raises(InputError, match="keeps one"):
        metrics.score(FROZEN[:3], 24)
    with pytest.raises(InputError, match="at least 2"):
        consistency(torch.zeros(1, 5))
