"""Held-out alignment metrics of the embedded task: the judge's exact verdict and a small open_clip model's cosine."""

from __future__ import annotations

from typing import ClassVar

import torch

from otca.files import resolve_model
from otca.tasks import scenes, video_scenes
from otca.types import Prompt


class JudgeAccuracy:
    """1 where the held-out judge of images finds exactly what the prompt demands, else 0."""

    name = "judge_correct"
    protocol: ClassVar[dict[str, str]] = {
        "backbone": "embedded judge (convolutional detector)",
        "decode": "fixed confidence threshold",
    }
    check_prompt = staticmethod(scenes.check_spec)

    def __init__(self):
        from otca.tasks.judge import HeldOutJudge

        self.judge = HeldOutJudge.from_pretrained(resolve_model("embedded:judge"))

    def score(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> torch.Tensor:
        """Verdicts 0 or 1, float32 (B,). Raises InputError for a prompt without a spec of the grammar."""
        for prompt in prompts:
            self.check_prompt(prompt)
        return self.judge.verdict(media_BFCHW, prompts).float()


class VideoJudgeAccuracy(JudgeAccuracy):
    """The same of the judge of videos, in every frame."""

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
        self.score = (clip or embedded_clip()).score


def embedded_clip():
    """The shipped open_clip model."""
    from otca.tasks.clip import EmbeddedClip

    return EmbeddedClip.from_pretrained(resolve_model("embedded:clip"))
