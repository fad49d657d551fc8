"""What published scorers see: the pictures that media would be saved as."""

from __future__ import annotations

import pytest
import torch

from otca.rewards.pixels import to_pictures, to_pixels
from tests.samples import SIZES, media_of, saved


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_those_of_the_saved_files(size):
    media = media_of(size)
    assert [a.tobytes() for a in to_pictures(media[:, 0])] == [b.tobytes() for b in saved(media)]


def test_levels_are_those_of_a_file():
    levels = torch.arange(256) / 255
    assert torch.equal(to_pixels(levels), torch.arange(256, dtype=torch.uint8))
    assert to_pixels(torch.tensor([-0.2, 0.4999 / 255, 1.7])).tolist() == [0, 0, 255]
