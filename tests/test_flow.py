"""RAFT in both published layouts: the numbers of its authors' program, round trips, and what bears VBench's name."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.models.optical_flow import raft_large

from eval.metrics import flow as flows
from eval.metrics.encoders import FILES, VBenchFile
from eval.metrics.flow import RaftFlow, unpadded
from eval.metrics.motion import MotionMetrics, dynamic_degree
from eval.metrics.vbench import is_static
from otca.errors import InputError
from otca.files import sha256
from tests.samples import LAYOUTS, texture


def drawn() -> dict[str, torch.Tensor]:
    """Such a file with weights from generators that never change, so that a peer's numbers for them can be written down."""
    weights = {}
    for i, (name, shape) in enumerate(sorted(LAYOUTS["raft"].items())):
        noise, last = np.random.RandomState(i).normal(0, 1, shape), name.rpartition(".")[2]
        if last == "num_batches_tracked":
            weights[name] = torch.tensor(1)
            continue
        scaled = {"running_var": 1 + 0.5 * np.tanh(noise), "running_mean": 0.1 * noise, "bias": 0.1 * noise}.get(last)
        if scaled is None:
            scaled = noise / math.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 1 + 0.1 * noise
        weights[name] = torch.from_numpy(np.asarray(scaled)).float()
    for name in [name for name in weights if ".norm3." in name]:  # one module under two names
        weights[name] = weights[name.replace("norm3", "downsample.1")]
    return weights


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("raft") / "raft-things.pth"
    torch.save(drawn(), path)
    return path


@pytest.fixture(scope="module")
def ported(tmp_path_factory):
    """Random weights in torchvision's layout."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "raft_large.pth"
    torch.save(raft_large(weights=None).state_dict(), path)
    return path


def pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A texture that moves by two pixels to the right."""
    wide = torch.from_numpy(texture(height, width + 2, 0))
    return wide[..., 2:], wide[..., :-2]


def as_vbench(flow: RaftFlow) -> RaftFlow:
    """As if its weights were those of raft-things."""
    flow.vbench = True
    return flow


def longest(field_HW2: np.ndarray, share: float) -> float:
    lengths = np.sort(np.sqrt((field_HW2.astype(np.float64) ** 2).sum(-1)).ravel())[::-1]
    return lengths[: int(share * lengths.size)].mean()


def test_raft_gives_the_numbers_of_its_authors_program(published):
    """princeton-vl/RAFT with the same file and frames, padded by its InputPadder, 20 updates; then its longest 5 % of all."""
    field = RaftFlow(published).padded(*pair(130, 173))
    assert field.shape == (136, 176, 2)
    assert field[3, 5] == pytest.approx((-2.50538, 6.20267), abs=1e-2)
    assert field[70, 90] == pytest.approx((-57.34625, -42.80879), abs=1e-2)
    assert longest(field, 0.05) == pytest.approx(105.76333, abs=1e-2)
    assert np.array_equal(unpadded(field, 130, 173), field[3:133, 1:174])


def test_torchvisions_layout_is_taken_as_it_is(ported, monkeypatch):
    monkeypatch.setattr(flows, "RAFT_UPDATES", 2)
    flow = RaftFlow(ported)
    a, b = torch.from_numpy(texture(132, 140, 0)), torch.from_numpy(texture(132, 140, 1))
    pad = torch.nn.functional.pad(torch.stack([a, b]) * 2 - 1, (2, 2, 2, 2), mode="replicate")
    with torch.no_grad():
        peer = flow.model(pad[:1], pad[1:], num_flow_updates=2)[-1][0, :, 2:-2, 2:-2].permute(1, 2, 0)
    assert np.allclose(flow(a, b), peer, atol=1e-4)
    assert flow(a[:, :32, :40], b[:, :32, :40]).shape == (32, 40, 2)


@pytest.mark.parametrize("layout", ["published", "ported"])
def test_vbenchs_name_needs_its_weights(layout, request, monkeypatch):
    path = request.getfixturevalue(layout)
    assert MotionMetrics(RaftFlow(path)).columns[:2] == ("dynamic_degree_raft", "top_flow_raft")
    monkeypatch.setitem(FILES, "raft", VBenchFile(sha256(path), ""))
    assert MotionMetrics(RaftFlow(path)).columns[:3] == ("dynamic_degree", "dynamic_degree_raft", "top_flow_raft")


class Padded:
    """A flow of VBench's whose lengths are told: in the padding, and inside."""

    name, vbench, protocol = "raft", True, {"resolution": "as given"}

    def __init__(self, padding: float, inside: float):
        self.lengths = padding, inside

    def padded(self, first, second):
        height, width = first.shape[1:]
        field = np.zeros((height + -height % 8, width + -width % 8, 2), np.float32)
        field[..., 0] = self.lengths[0]
        unpadded(field, height, width)[..., 0] = self.lengths[1]
        return field

    def __call__(self, first, second):
        height, width = first.shape[1:]
        return np.full((height, width, 2), (self.lengths[1], 0), np.float32)


def test_vbench_counts_the_padding_and_never_takes_it_off():
    """At 129 pixels the threshold is 6·129/256 = 3.02; the 7 rows and columns of padding are 10 % of 136×136."""
    video = torch.zeros(9, 3, 129, 129)
    degree = dynamic_degree(video, 8, Padded(padding=5, inside=1))
    assert (degree.moves, degree.vbench, degree.top_flow) == (0, 1, 1)
    degree = dynamic_degree(video, 8, Padded(padding=0, inside=4))
    assert (degree.moves, degree.vbench, degree.top_flow) == (1, 1, 4)
    assert is_static(video, Padded(0, 0)) and not is_static(video, Padded(padding=9, inside=0))  # 2·1·1.51 = 3.02 between ends


@pytest.mark.parametrize(("frames", "fps", "moves", "vbench"), [(2, 8, 0, 1), (3, 16, 0, 1), (3, 8, 0, 0), (9, 8, 0, 0)])
def test_vbench_calls_a_video_of_two_kept_frames_moving(frames, fps, moves, vbench):
    """round(4·2/16) = 0 pairs are asked for."""
    degree = dynamic_degree(torch.zeros(frames, 3, 128, 128), fps, Padded(0, 0))
    assert (degree.moves, degree.vbench) == (moves, vbench)


def test_frames_too_small_for_vbench_have_no_value_of_its_name(published):
    small = torch.rand(3, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    degree = dynamic_degree(small, 8, Padded(9, 9))
    assert degree.moves == 1 and math.isnan(degree.vbench)
    flow = as_vbench(RaftFlow(published))
    with pytest.raises(InputError, match=r"frames of 128×64 pixels are too small for VBench's RAFT, which needs 128 a side"):
        flow.padded(*small[:2])
    with pytest.raises(InputError, match="too small for VBench's RAFT"):
        is_static(small, flow)
    values = MotionMetrics(Padded(0, 0)).score(small, 8)
    assert math.isnan(values["dynamic_degree"]) and values["dynamic_degree_raft"] == 0
