"""The benchmark of the rewards, as small as it gets: words that can be read, every call of a network counted, a row a reward."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from otca.rewards.base import build_reward
from otca.rewards.image_reward import ImageReward
from otca.rewards.video_align import TextAlignment
from reproduce import speed_rewards
from reproduce.speed_rewards import bare_forward, replayed, said, signs


@pytest.fixture
def small(monkeypatch):
    """Networks, media and rounds of the least size; no CLIP, whose smallest published tower is large for a test."""
    tiny = {"num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(speed_rewards, "BLIP_VISION", tiny | {"hidden_size": 16, "intermediate_size": 32})
    monkeypatch.setattr(speed_rewards, "BLIP_TEXT", tiny | {"hidden_size": 16, "intermediate_size": 32})
    monkeypatch.setattr(speed_rewards, "QWEN", tiny | {"hidden_size": 32, "intermediate_size": 32, "num_key_value_heads": 1})
    monkeypatch.setattr(speed_rewards, "QWEN_VISION", {"depth": 1, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2})
    monkeypatch.setattr(speed_rewards, "clip_rewards", lambda folder: {})
    for name, value in (("SIZES", (64,)), ("PICTURES", 5), ("VIDEOS", 2), ("FRAMES", 4), ("ROUNDS", 1)):
        monkeypatch.setattr(speed_rewards, name, value)


def test_the_signs_can_be_read():
    """OCR is timed on what it is for."""
    assert build_reward("ocr").score(signs(5, 1, 128), said(5)).tolist() == [1.0] * 5
    media = signs(2, 3, 200)
    assert media.shape == (2, 3, 3, 200, 200) and torch.equal(media[0, 2], media[0, 0].roll(4, dims=2))


def test_rewards_read_the_files_that_are_made(small, tmp_path):
    blip, qwen = speed_rewards.blip_reward(tmp_path), speed_rewards.qwen_reward(tmp_path)
    assert isinstance(blip, ImageReward) and isinstance(qwen, TextAlignment)
    for reward, frames in ((blip, 1), (qwen, 4)):
        scores = reward.score(signs(2, frames, 64), said(2))
        assert scores.shape == (2,) and torch.isfinite(scores).all()
    media, prompts = signs(5, 1, 64), said(5)
    network = blip.network["blip"]
    calls = []
    network["text_encoder"].register_forward_hook(lambda *_: calls.append("text"))
    network["visual_encoder"].register_forward_hook(lambda *_: calls.append("picture"))
    with torch.inference_mode():
        bare = bare_forward(blip, media, prompts)
        calls.clear()
        bare()
    assert calls == ["picture", "text"]


def test_calls_are_made_again_as_they_were():
    double = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(double.weight, 2)
    bare = replayed([double], lambda: double(double(torch.ones(1))))
    assert [value.item() for value in bare()] == [2, 4]
    double(torch.ones(1))
    assert len(bare()) == 2  # and none that came later


def test_a_row_a_reward(small, tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        speed_rewards.main(["--out", str(tmp_path / "rewards.csv")])
    finally:
        torch.set_num_threads(threads)
    rows = pd.read_csv(tmp_path / "rewards.csv").set_index("reward")
    assert rows.index.tolist() == ["image_reward", "videoalign_ta", "ocr"] and (rows["side"] == 64).all()
    assert rows["frames"].tolist() == [1, 4, 1] and (rows["images_per_second"] > 0).all()
    assert "16 wide, 1 layers" in rows["network"]["image_reward"] and "32 wide, 1 layers" in rows["network"]["videoalign_ta"]
    assert rows["efficiency"].notna().tolist() == [True, True, False] and rows["hardware"].str.endswith(", 1 thread").all()
    assert 0.1 < rows["efficiency"]["videoalign_ta"] < 2  # its ratings are not those of the call before
    assert "videoalign_ta" in capsys.readouterr().out
