"""The OCR reward reads rendered words, and grades what is nearly right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from otca.errors import InputError, RewardError
from otca.rewards.base import build_reward, check_prompts, score_all
from otca.rewards.ocr import agreement, grounded, wanted_text
from otca.types import Prompt


@pytest.fixture(scope="module")
def ocr():
    return build_reward("ocr")


def sign(text, side=256):
    """(3, side, side) in [0, 1]: black letters on a pale ground."""
    image = Image.new("RGB", (side, side), (235, 240, 220))
    font = ImageFont.load_default(side / 5)
    ImageDraw.Draw(image).text((side / 2, side / 2), text, fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def strip(text, height, width, letters, place=0.25):
    """(3, height, width) in [0, 1]: pale letters of so many pixels on a dark ground, at a share of the longer side."""
    image = Image.new("RGB", (width, height), (20, 60, 40))
    at = (width * place, height / 2) if width > height else (width / 2, height * place)
    ImageDraw.Draw(image).text(at, text, fill="white", font=ImageFont.load_default(letters), anchor="mm")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def saying(text, name="p"):
    return Prompt(name, f'a street sign that says "{text}"')


def test_words_are_read_at_every_size(ocr):
    for side in (64, 512):
        words = ["STOP", "Exit", "HELLO"]
        media = torch.stack([sign(word, side) for word in words]).unsqueeze(1)
        assert ocr.score(media, [saying(word) for word in words]).tolist() == [1.0, 1.0, 1.0], side


@pytest.mark.parametrize(
    ("height", "width", "letters"),
    [
        (64, 448, 44),  # 7:1, as it is
        (40, 300, 28),  # 7.5:1
        (100, 10_000, 80),  # 100:1, read at 20 × 2000
        (512, 64, 20),
        (4000, 100, 30),
    ],
)
def test_words_are_read_on_strips(ocr, height, width, letters):
    """The search for text rounds the shorter side of such pictures to nothing, or shrinks letters to a few pixels."""
    media = strip("STOP", height, width, letters)[None, None]
    assert ocr.score(media, [saying("STOP")]).tolist() == [1.0]
    assert ocr.score(media, [saying("EXIT")]).item() < 0.5


def test_a_strip_lies_unchanged_in_the_middle_of_its_ground():
    noise = np.random.default_rng(0).integers(0, 256, (10, 100, 3), dtype=np.uint8)
    wide, tall = (np.asarray(grounded(Image.fromarray(each))) for each in (noise, noise.swapaxes(0, 1).copy()))
    assert wide.shape == (15, 100, 3) and np.array_equal(wide[2:12], noise)
    assert np.array_equal(wide[0], wide[14]) and np.array_equal(tall, wide.swapaxes(0, 1))


@pytest.mark.parametrize("size", [(1, 101), (3000, 20), (1, 60_000)])
def test_pictures_of_which_nothing_can_be_read_are_refused(ocr, size):
    height, width = size
    said = f"^a picture of {width}×{height} is too thin to be read: one side may be 100 times the other; crop it$"
    with pytest.raises(InputError, match=said):
        ocr.score(torch.zeros(1, 1, 3, height, width), [saying("STOP")])


def test_the_wrong_word_is_graded(ocr):
    media = torch.stack([sign("STOP"), torch.full((3, 256, 256), 0.5)]).unsqueeze(1)
    assert ocr.score(media, [saying("SHOP"), saying("STOP")]).tolist() == pytest.approx([0.75, 0.0])


def test_a_video_is_the_mean_of_its_frames(ocr):
    video = torch.stack([sign("STOP"), torch.full((3, 256, 256), 0.5)]).unsqueeze(0)
    assert ocr.score(video, [saying("STOP")]).tolist() == pytest.approx([0.5])


@pytest.mark.parametrize(
    "read, wanted, expected",
    [("Stop", "STOP", 1.0), ("O PEN now", "open", 1.0), ("stp", "stop", 0.75), ("", "stop", 0.0), ("zzzzzzzzzz", "stop", 0.0)],
)
def test_agreement(read, wanted, expected):
    assert agreement(read, wanted) == expected


def test_quoted_text():
    assert wanted_text(Prompt("p", 'a "No Entry" sign and "more"')) == "No Entry"
    assert wanted_text(Prompt("p", "a sign, “Go”")) == "Go"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a street sign", "no text"),
        ('a sign, ""', "no text"),
        ('a sign that says " "', "only blanks"),
        ('“\u00a0” and "\n\t"', "only blanks"),
    ],
)
def test_a_prompt_that_wants_no_text_stops_the_run(ocr, text, what):
    """Before any of it is read, as any picture would say nothing; in one line, at the start of a training as well."""
    said = f"prompt 'p7' has {what} in quotation marks; ocr needs a text, as in: a sign that says \"STOP\""
    with pytest.raises(InputError) as refusal:
        check_prompts([ocr], [saying("STOP"), Prompt("p7", text)], "here")
    assert str(refusal.value) == said
    with pytest.raises(RewardError, match=r"reward 'ocr' failed: .*p7.* has .* in quotation marks; ocr needs a text"):
        score_all([ocr], sign("STOP")[None, None].expand(2, -1, -1, -1, -1), [saying("STOP"), Prompt("p7", text)])
