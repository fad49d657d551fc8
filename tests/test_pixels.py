"""What published scorers see: the pictures that media would be saved as, and VideoAlign's resize of tensors."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as transforms

from otca.errors import InputError
from otca.rewards.pixels import TooLarge, preprocessed, to_pictures, to_pixels
from tests.samples import SIZES, media_of, saved


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_those_of_the_saved_files(size):
    media = media_of(size)
    assert [a.tobytes() for a in to_pictures(media[:, 0])] == [b.tobytes() for b in saved(media)]


def test_levels_are_those_of_a_file():
    levels = torch.arange(256) / 255
    assert torch.equal(to_pixels(levels), torch.arange(256, dtype=torch.uint8))
    assert to_pixels(torch.tensor([-0.2, 0.4999 / 255, 1.7])).tolist() == [0, 0, 255]


def test_pictures_that_cannot_be_preprocessed_are_refused():
    with pytest.raises(TooLarge, match="a picture of 1×1300 would have more than 64000000 pixels with its shorter side at 224"):
        preprocessed([Image.new("RGB", (1, 1300))], transforms.to_tensor, 224)
    with pytest.raises(InputError, match="a picture of 9×1 is too thin"):
        preprocessed([Image.new("RGB", (9, 1))], lambda picture: transforms.resize(picture, [0, 9]), 8)
