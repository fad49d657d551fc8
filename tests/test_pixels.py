"""Preprocessing on tensors gives the very numbers of Pillow, torchvision and open_clip on the saved picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import InterpolationMode, functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from otca.rewards.pixels import Crop, Preprocess, interpolate, resize, to_pixels

SIDES = st.integers(1, 70)


def picture(height, width, seed=0):
    """Noise on a gradient: sharp edges, and values at both ends."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-60, 315, height * width * 3).reshape(height, width, 3)
    return np.clip(ramp + rng.normal(0, 80, (height, width, 3)), 0, 255).astype(np.uint8)


def tensor(pixels_HWC):
    return torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1).unsqueeze(0)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, new_height=SIDES, new_width=SIDES, kind=st.sampled_from(["bicubic", "bilinear"]))
def test_resizing_is_pillows_bit_for_bit(height, width, new_height, new_width, kind):
    pixels = picture(height, width, seed=height)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    expected = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), filters[kind]))
    found = resize(tensor(pixels), new_height, new_width, kind)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (480, 832), (333, 200), (224, 224), (225, 224)])
@pytest.mark.parametrize("fit", ["shortest", "longest", "squash"])
def test_preprocessing_is_open_clips(size, fit):
    pixels = picture(*size)
    transform = image_transform_v2(PreprocessCfg(size=224, resize_mode=fit, interpolation="bicubic"), is_train=False)
    found = Preprocess(fit=fit)(tensor(pixels) / 255)
    assert (found[0] - transform(Image.fromarray(pixels))).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(64, 64), (480, 832), (333, 200), (97, 224)])
def test_a_resized_tensor_is_torchvisions(size):
    pixels = picture(*size)
    scale = 224 / max(size)
    height, width = (round(side * scale) for side in size)
    inner = functional.resize(functional.to_tensor(Image.fromarray(pixels)), [height, width], InterpolationMode.BICUBIC)
    above, left = (224 - height) // 2, (224 - width) // 2
    expected = functional.pad(inner, [left, above, 224 - width - left, 224 - height - above])
    found = Preprocess(fit="longest", rounded=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(tensor(pixels) / 255)
    assert (expected.min() < 0) == (scale != 1), "overshoot is not clamped"
    assert (found[0] - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(64, 64), (480, 832), (333, 200), (200, 203), (224, 227)])
def test_cropping_is_that_of_transformers(size):
    pixels = picture(*size)
    expected = CLIPImageProcessorPil()(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    assert (Preprocess(crop="transformers")(tensor(pixels) / 255)[0] - expected).abs().max() <= 1e-5


def test_the_two_crops_differ_where_a_margin_is_odd():
    row = torch.arange(227).expand(1, 3, 224, 227) / 255
    crops = {crop: Preprocess(crop=crop, mean=(0.0,) * 3, std=(1.0,) * 3)(row)[0, 0, 0, 0] * 255 for crop in Crop.__args__}
    assert {crop: round(first.item()) for crop, first in crops.items()} == {"torchvision": 2, "transformers": 1}


@pytest.mark.parametrize("size", [(64, 64), (480, 832), (333, 200), (336, 588)])
def test_interpolation_is_torchvisions(size):
    pixels = tensor(picture(*size))
    found = interpolate(pixels, 336, 588)
    expected = functional.resize(pixels, [336, 588], InterpolationMode.BICUBIC, antialias=True)
    assert found.dtype == torch.uint8 and torch.equal(found, expected)
    assert torch.equal(found, resize(pixels, 336, 588)) == (size == (336, 588))  # Pillow's is another number


def test_a_batch_is_its_pictures():
    batch = torch.cat([tensor(picture(40, 60, seed)) for seed in range(3)])
    assert torch.equal(resize(batch, 20, 33), torch.cat([resize(one, 20, 33) for one in batch.split(1)]))


def test_levels_are_those_of_a_file():
    level = torch.arange(256, dtype=torch.float32)
    assert torch.equal(to_pixels(level / 255), level.to(torch.uint8))
    assert to_pixels(torch.tensor([-0.2, 1.3])).tolist() == [0, 255]
