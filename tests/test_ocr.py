"""The OCR reward reads rendered words, and grades what is nearly right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from otca.errors import InputError, RewardError
from otca.rewards.base import build_reward, check_prompts, score_all
from otca.rewards.ocr import agreement, wanted_text
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


def saying(text, name="p"):
    return Prompt(name, f'a street sign that says "{text}"')


def test_words_are_read_at_every_size(ocr):
    for side in (64, 512):
        words = ["STOP", "Exit", "HELLO"]
        media = torch.stack([sign(word, side) for word in words]).unsqueeze(1)
        assert ocr.score(media, [saying(word) for word in words]).tolist() == [1.0, 1.0, 1.0], side


def test_pictures_of_which_nothing_can_be_read_are_refused(ocr):
    with pytest.raises(InputError, match="^ocr: a picture of 300×40 is too thin; one side may be 7 times the other, so crop it$"):
        ocr.score(torch.zeros(1, 1, 3, 40, 300), [saying("STOP")])


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
