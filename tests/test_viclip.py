"""ViCLIP on a small random checkpoint of the published layout: known scores, names and refusals."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from eval.metrics.encoders import FILES, VBenchFile
from eval.metrics.vbench import dimension_means, read_entries
from eval.metrics.viclip import ViClip, frame_indices
from otca.errors import InputError
from otca.files import sha256
from tests.samples import small_weights

TEXTS = ["A red Ball &amp; two cats, it's 3 o'clock", "a dog " * 40 + "in snow", "a dog " * 15 + "in rain"]


def checkpoint() -> dict[str, torch.Tensor]:
    """Random tensors under every name of ViClip-InternVid-10M-FLT.pth."""
    return {"temp": torch.tensor(0.01), **small_weights("viclip")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("viclip") / "ViClip-InternVid-10M-FLT.pth"
    torch.save({"model": checkpoint()}, path)
    return path


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """Coloured waves that drift, on the 256 levels of a file."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [0.5 + 0.5 * torch.sin(0.2 * x * (c + 1) + 0.13 * y + 1.3 * f) for f in range(frames) for c in range(3)]
    return (torch.stack(waves).unflatten(0, (frames, 3)) * 255).round() / 255


@pytest.fixture(scope="module")
def metric(weights):
    return ViClip(weights)


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [(TEXTS[0], (16, 90, 160), -0.185879), (TEXTS[1], (3, 64, 48), 0.037779), (TEXTS[2], (8, 48, 64), 0.126964)],
)
def test_scores_are_those_of_the_pass_written_out(metric, text, size, expected):
    """As a pass in float64 gives them, written out from the names of the published file; time has a direction."""
    video = clip(*size)
    assert metric.score(video, text) == pytest.approx(expected, abs=1e-5)
    assert abs(metric.score(video, text) - metric.score(video.flip(0), text)) > 1e-4


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (1, [0] * 8),
        (5, [0, 1, 2, 3, 4, 4, 4, 4]),
        (8, list(range(8))),
        (9, [0, 1, 2, 3, 4, 5, 6, 7]),
        (16, [0, 2, 4, 6, 8, 10, 12, 14]),
        (49, [2, 8, 14, 20, 26, 32, 38, 45]),
    ],
)
def test_the_middle_of_eight_parts_is_looked_at(frames, expected):
    assert frame_indices(frames) == expected


def test_vbenchs_name_needs_its_own_file(metric, weights, monkeypatch):
    assert metric.column == "overall_consistency_viclip"
    monkeypatch.setitem(FILES, "viclip", VBenchFile(sha256(weights), ""))
    assert ViClip(weights).column == "overall_consistency"


def changed(change):
    tensors = checkpoint()
    change(tensors)
    return {"model": tensors}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed(lambda t: t.pop("text_encoder.ln_final.bias")), r"does not fit: .*text_encoder\.ln_final\.bias"),
        (changed(lambda t: t.pop("vision_encoder.proj")), r"no file of ViCLIP: it lacks vision_encoder\.proj; fetch ViClip"),
        (
            changed(lambda t: t.update({"vision_encoder.conv1.weight": torch.zeros(5, 3, 1, 56, 56)})),
            "is of no network that open_clip builds",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, said):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match=rf"^metric 'overall_consistency_viclip': .*other\.pth .*{said}"):
        ViClip(tmp_path / "other.pth")


def test_temporal_style_is_overall_consistency_of_its_own_prompts(tmp_path):
    listed = [
        {"prompt_en": "a bay, zoom in", "dimension": ["temporal_style"]},
        {"prompt_en": "a cat", "dimension": ["overall_consistency"]},
    ]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    rows = pd.DataFrame({"file": ["a", "b"], "prompt_id": ["000001", "000002"], "text": ["a bay, zoom in", "a cat"], "error": ""})
    table = dimension_means(rows.assign(overall_consistency=[0.2, 0.3]), read_entries(tmp_path / "list.json"))
    assert table["mean"].to_dict() == {"temporal_style": 0.2, "overall_consistency": 0.3}
    other = dimension_means(rows.assign(overall_consistency_viclip=[0.2, 0.3]), read_entries(tmp_path / "list.json"))
    assert other.empty
