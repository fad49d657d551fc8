"""Held-out alignment metrics of the embedded task: the judge's exact verdict and a small open_clip model's cosine."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch

from otca.files import resolve_model
from otca.tasks import scenes, video_scenes
from otca.types import Prompt


class _JudgeAccuracy:
    """1 where a held-out judge finds exactly what the prompt demands, else 0; a subclass says which judge, of which grammar."""

    name = "judge_correct"
    check_prompt: ClassVar[Callable[[Prompt], None]]

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Verdicts 0 or 1, float32 (B,). Raises InputError for a prompt without a spec of the grammar."""
        for prompt in prompts:
            self.check_prompt(prompt)
        return self.judge.verdict(media_BFCHW, prompts).float()


class JudgeAccuracy(_JudgeAccuracy):
    """The verdict of the image judge."""

    protocol: ClassVar[dict[str, str]] = {
        "backbone": "embedded judge (convolutional detector)",
        "decode": "fixed confidence threshold",
    }
    check_prompt = staticmethod(scenes.check_spec)

    def __init__(self):
        from otca.tasks.judge import HeldOutJudge

        self.judge = HeldOutJudge.from_pretrained(resolve_model("embedded:judge"))


class VideoJudgeAccuracy(_JudgeAccuracy):
    """The verdict of the video judge, in every frame."""

    protocol: ClassVar[dict[str, str]] = {
        "backbone": "embedded video judge (detector of each frame, tracks, motion reader)",
        "decode": "fixed thresholds",
    }
    check_prompt = staticmethod(video_scenes.check_spec)

    def __init__(self):
        from otca.tasks.video_judge import VideoJudge

        self.judge = VideoJudge.from_pretrained(resolve_model("embedded:video_judge"))


class ClipScore:
    """Cosine of image and text features of the embedded open_clip model, −1 to 1."""

    name = "clip_score"
    protocol: ClassVar[dict[str, str]] = {"backbone": "embedded open_clip model (trained on the task's captions)"}

    def __init__(self, clip=None):
        self.clip = clip or embedded_clip()

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Cosines, float32 (B,)."""
        return self.clip.score(media_BFCHW, prompts)


def embedded_clip():
    """The shipped open_clip model."""
    from otca.tasks.clip import EmbeddedClip

    return EmbeddedClip.from_pretrained(resolve_model("embedded:clip"))
