"""Frame encoders behind VBench's consistencies: features worked out by other means, names that only its own files give."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms import functional as transforms

from eval.metrics import encoders
from eval.metrics.encoders import FILES, VBenchFile, clip_encoder, consistency, dino_encoder, dino_places, embedded_encoder
from eval.metrics.motion import MotionMetrics
from otca.errors import InputError
from otca.files import sha256
from otca.rewards.pixels import CLIP_MEAN, CLIP_STD
from otca.tasks import video_scenes
from tests.samples import small_weights

DINO = {"patch_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
SMALL = dataclasses.replace(FILES["clip_b32"], network="small")
VISION = {"image_size": 224, "width": 128, "layers": 2, "patch_size": 56}
TEXT = {"context_length": 77, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}


def levels(frames: int, height: int, width: int) -> torch.Tensor:
    """A video on the 256 levels of a file."""
    return torch.randint(256, (frames, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255


def test_consistency_is_vbenchs_formula():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    assert consistency(features[:2]) == 0
    assert consistency(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])) == pytest.approx((2 + 1) * 0.5**0.5 / 4)
    assert consistency(features) == 0  # cosines below 0 count as 0
    assert consistency(features[:1].repeat(4, 1)) == pytest.approx(1)


def test_frame_consistency_of_embedded_clips_and_order_of_columns():
    encoder = embedded_encoder()
    clip = video_scenes.draw_clip(video_scenes.prompts("validation", 1)[0].spec, np.random.default_rng(0))
    video = torch.from_numpy(video_scenes.render_clip(clip))
    values = MotionMetrics(encoders=[encoder]).score(video, 8)
    assert list(values)[:3] == ["dynamic_degree_dis", "top_flow_dis", "motion_smoothness_dis"]
    assert 0.8 < values["frame_consistency_embedded"] < 1
    torn = torch.cat([video, torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))])
    assert consistency(encoder.encode(torn)) < values["frame_consistency_embedded"]
    assert encoder.encode(video.repeat_interleave(2, 2).repeat_interleave(2, 3)).shape == encoder.encode(video).shape
    assert MotionMetrics(encoders=[encoder]).protocol["frame_consistency_embedded"]["backbone"].startswith("embedded")


@pytest.fixture
def dino_file(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "DINO_SIZES", DINO)
    path = tmp_path / "dino.pth"
    torch.save(small_weights("dino"), path)
    return path


DINO_FEATURES = {
    (96, 128): [[0.30538, 0.62384, 2.91463], [1.34794, 0.7335, 1.23485], [0.56666, 0.66815, 0.42994]],
    (230, 224): [[-0.23274, 1.53819, 0.98562], [1.19824, 0.42189, -0.0212], [0.02445, 1.01981, 0.82961]],
    (224, 500): [[0.88189, 0.74839, 0.49299], [1.40022, 0.70426, 2.56909], [0.24456, 1.09684, 0.28148]],
}
"""The first three of each frame, by a pass in float64 written out from the names of the published file."""


@pytest.mark.parametrize(("height", "width"), DINO_FEATURES)
def test_dino_features_are_those_of_its_authors_network(dino_file, height, width):
    """Shorter side 224, ImageNet's statistics, places resized by (n + 0.1)/7 instead of to n, epsilon 1e-6."""
    found_FD = dino_encoder(dino_file).encode(levels(3, height, width))
    torch.testing.assert_close(found_FD[:, :3], torch.tensor(DINO_FEATURES[height, width]), atol=2e-4, rtol=1e-4)


def test_places_are_resized_but_for_the_trained_size():
    square = torch.randn(1, 197, 4)
    assert dino_places(square, 224, 224, 16) is square
    assert not torch.equal(dino_places(square, 224, 238, 16), square)  # as many patches, and yet resized by 14.1/14


def test_vbenchs_name_needs_dinos_own_file(dino_file, monkeypatch):
    assert dino_encoder(dino_file).column == "frame_consistency_dino"
    monkeypatch.setitem(FILES, "dino", VBenchFile(sha256(dino_file), ""))
    encoder = dino_encoder(dino_file)
    assert encoder.column == "subject_consistency" and sha256(dino_file)[:16] in encoder.protocol["backbone"]


@pytest.fixture
def clip_model(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setitem(FILES, "clip_b32", SMALL)
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config)
    return open_clip.CLIP(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=True).eval()


def clip_folder(folder, model, **changes):
    """A folder in the layout of timm/vit_base_patch32_clip_224.openai."""
    folder.mkdir(exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    save_file({"unread": torch.zeros(1)}, folder / "model.safetensors")  # timm's own, which comes first by name
    config = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT} | changes
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def expected_features(model, video):
    pixels = transforms.resize(video * 255, [224], transforms.InterpolationMode.BICUBIC, antialias=False)
    normal = transforms.normalize(transforms.center_crop(pixels, [224, 224]) / 255, CLIP_MEAN, CLIP_STD)
    with torch.inference_mode():
        return model.encode_image(normal)


def test_clip_features_are_those_of_open_clip_behind_torchvisions_transforms(clip_model, tmp_path):
    """Shorter side 224, the middle, CLIP's statistics; timm's copy of OpenAI's weights has not VBench's name."""
    folder, video = clip_folder(tmp_path / "clip", clip_model), levels(2, 120, 90)
    encoder, digest = clip_encoder(folder), sha256(folder / "open_clip_model.safetensors")
    assert encoder.column == "frame_consistency_clip" and digest[:16] in encoder.protocol["backbone"]
    torch.testing.assert_close(encoder.encode(video), expected_features(clip_model, video), atol=1e-5, rtol=1e-5)


def test_openais_archive_is_read_by_its_hash_alone(clip_model, tmp_path, monkeypatch):
    """TorchScript in half precision, as published: what it holds is code too, so no other archive is opened."""
    path = tmp_path / "ViT-B-32.pt"
    clip_model.attn_mask = clip_model._buffers.pop("attn_mask")  # which OpenAI's archive does not keep
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        half = torch.jit.trace(clip_model, (torch.rand(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)), check_trace=False)
        half.half().save(path)
    with pytest.raises(InputError, match=r"'background_consistency': .*ViT-B-32\.pt has SHA-256 .*VBench's has"):
        clip_encoder(path)
    monkeypatch.setitem(FILES, "clip_b32", dataclasses.replace(SMALL, sha256=sha256(path)))
    video = levels(2, 90, 160)
    for given in (path, tmp_path):
        encoder = clip_encoder(given)
        assert encoder.column == "background_consistency"
        expected = expected_features(clip_model.half().float(), video)
        torch.testing.assert_close(encoder.encode(video), expected, atol=1e-5, rtol=1e-5)


def test_other_networks_are_no_clip(clip_model, tmp_path):
    with pytest.raises(
        InputError, match=r"metric 'background_consistency': .*empty holds neither ViT-B-32\.pt nor open_clip_model"
    ):
        (tmp_path / "empty").mkdir()
        clip_encoder(tmp_path / "empty")
    with pytest.raises(InputError, match=r"absent\.pt not found; fetch it from openaipublic\.azureedge\.net"):
        clip_encoder(tmp_path / "absent.pt")
    for changes in ({"quick_gelu": False}, {"vision_cfg": VISION | {"layers": 12}}):
        with pytest.raises(InputError, match="'background_consistency': .*describes another network than small"):
            clip_encoder(clip_folder(tmp_path / "clip", clip_model, **changes))
