"""Preprocessing on tensors gives the very numbers of Pillow, torchvision and open_clip on the saved picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode, functional
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from otca.errors import InputError
from otca.limits import TooLarge
from otca.rewards import pixels as module
from otca.rewards.pixels import MAX_READ, Crop, Preprocess, interpolate, resize, to_pixels

SIDES = st.integers(1, 70)
KINDS = st.sampled_from(["bicubic", "bilinear"])
THIN = [(1, 300), (300, 1), (2, 500), (3, 701), (702, 4), (5, 901), (1000, 9)]


def picture(height, width, seed=0):
    """Noise on a gradient: sharp edges, and values at both ends."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-60, 315, height * width * 3).reshape(height, width, 3)
    return np.clip(ramp + rng.normal(0, 80, (height, width, 3)), 0, 255).astype(np.uint8)


def tensor(pixels_HWC):
    return torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1).unsqueeze(0)


@settings(max_examples=60, deadline=None)
@given(height=SIDES, width=SIDES, new_height=SIDES, new_width=SIDES, kind=KINDS)
def test_resizing_is_pillows_bit_for_bit(height, width, new_height, new_width, kind):
    pixels = picture(height, width, seed=height)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    expected = np.asarray(Image.fromarray(pixels).resize((new_width, new_height), filters[kind]))
    found = resize(tensor(pixels), new_height, new_width, kind)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(SIDES, SIDES), new=st.tuples(SIDES, SIDES), share=st.tuples(*[st.floats(0, 1)] * 4), kind=KINDS)
def test_a_window_is_cut_from_the_whole(size, new, share, kind):
    """Without anything else being made, and from all the source pixels that it depends on."""
    top, left = (int(part * (side - 1)) for part, side in zip(share, new))
    tall, wide = (1 + int(part * (side - 1 - first)) for part, side, first in zip(share[2:], new, (top, left)))
    picture_1CHW = tensor(picture(*size, seed=size[0]))
    whole = resize(picture_1CHW, *new, kind)
    found = resize(picture_1CHW, *new, kind, (top, left, tall, wide))
    assert torch.equal(found, whole[:, :, top : top + tall, left : left + wide])


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (480, 832), (333, 200), (224, 224), (225, 224), *THIN])
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


@pytest.mark.parametrize("size", [(64, 64), (480, 832), (333, 200), (200, 203), (224, 227), *THIN])
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


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        out = operation(*arguments, **options or {})
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, torch.Tensor):
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("size", [(1, 300), (4, 4000), (4000, 4), (1, 60_000), (60_000, 1), (30, 20_000), (512, 512)])
@pytest.mark.parametrize("fit", ["shortest", "squash"])
def test_thin_pictures_take_little_memory(size, fit):
    """Beside the picture itself: 16 MB are 14 crops as float64. Whole, 1 × 60000 would become 224 × 13 million."""
    media = torch.rand(1, 3, *size)
    with Largest() as largest:
        assert Preprocess(fit=fit)(media).shape == (1, 3, 224, 224)
    assert largest.bytes <= max(16e6, 2 * media.nbytes)


def test_many_pictures_are_resized_a_few_at_a_time(monkeypatch):
    media = torch.randint(256, (4, 3, 100, 120), dtype=torch.uint8)
    whole = resize(media, 30, 40)
    monkeypatch.setattr(module, "_LEVELS", 100)
    assert torch.equal(resize(media, 30, 40), whole)


def test_weights_of_long_sides_are_not_kept():
    module._bands.cache_clear()
    for side, kept in ((4096, 1), (4097, 1), (300, 2)):
        resize(torch.zeros(1, 1, 10, side, dtype=torch.uint8), 10, 7)
        assert module._bands.cache_info().currsize == kept, side
    assert sum(weight_OI.nbytes for _, weight_OI in module._bands(4096, 7, 0, 7, "bicubic")) < 0.7e6


@pytest.mark.parametrize(
    ("settings", "size", "kind", "said"),
    [
        ({"fit": "squash"}, (1, MAX_READ + 1), TooLarge, "65537×1 has 65537 pixels in a row .*; the limit is 65536"),
        ({"fit": "longest"}, (449, 1), InputError, "1×449 is too thin for 224×224: its shorter side would be 0"),
        ({"rounded": False}, (1, 2000), TooLarge, "2000×1 would become 448000×224, and 64000000 pixels are the limit"),
        ({"fit": "squash", "height": 8000, "width": 8001}, (1, 1), TooLarge, "1×1 would become 8001×8000, and 64000000 pixels"),
    ],
)
def test_what_cannot_be_resized_is_refused_in_one_line(settings, size, kind, said):
    with pytest.raises(kind, match=f"^a picture of {said}.*(crop|shrink) it") as refusal:
        Preprocess(**settings)(torch.zeros(1, 3, *size))
    assert "\n" not in str(refusal.value) and (kind is TooLarge) == isinstance(refusal.value, TooLarge)


def test_what_a_crop_leaves_out_does_not_count():
    """Whole, it would be 224 × 14.7 million pixels."""
    assert Preprocess()(torch.zeros(1, 3, 1, MAX_READ + 1)).shape == (1, 3, 224, 224)


def test_open_clip_takes_no_picture_of_which_a_side_would_be_0_either():
    transform = image_transform_v2(PreprocessCfg(size=224, resize_mode="longest"), is_train=False)
    with pytest.raises(ValueError, match="height and width must be > 0"):
        transform(Image.fromarray(picture(449, 1)))


def test_levels_are_those_of_a_file():
    level = torch.arange(256, dtype=torch.float32)
    assert torch.equal(to_pixels(level / 255), level.to(torch.uint8))
    assert to_pixels(torch.tensor([-0.2, 1.3])).tolist() == [0, 255]
