"""Held-out metrics of the embedded tasks: the judges' exact verdicts, a small open_clip model's cosine, metrics of whole sets."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from scipy import linalg

from otca.files import resolve_model
from otca.tasks import scenes, video_scenes
from otca.types import Prompt

FRECHET_SAMPLES = 2000
"""Fewer samples than this give a Fréchet distance that is mostly bias; it is then not reported."""


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
        "backbone": "embedded video judge (detector of each frame, tracks)",
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


def kernel_distance(feature_ND: torch.Tensor, reference_MD: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x·y/D + 1)³ (KID, Bińkowski et al. 2018), ×1 on raw features."""
    x, y = feature_ND.double(), reference_MD.double()
    n, m, d = len(x), len(y), x.shape[1]
    kxx, kyy, kxy = ((a @ b.T / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    within_x = (kxx.sum() - kxx.diagonal().sum()) / (n * (n - 1))
    within_y = (kyy.sum() - kyy.diagonal().sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * kxy.mean())


def frechet_distance(feature_ND: torch.Tensor, reference_MD: torch.Tensor) -> float:
    """Fréchet distance of Gaussians fitted to two sets (Heusel et al. 2017): ‖Δμ‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)."""
    x, y = feature_ND.double().numpy(), reference_MD.double().numpy()
    gap, cov_x, cov_y = x.mean(0) - y.mean(0), np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    return float(gap @ gap + np.trace(cov_x) + np.trace(cov_y) - 2 * np.trace(linalg.sqrtm(cov_x @ cov_y).real))


def diversity(feature_ND: torch.Tensor, samples_per_prompt: int) -> float:
    """Mean over prompts of the mean pairwise cosine distance between a prompt's samples (neighbours in the list), 0 to 2."""
    unit = torch.nn.functional.normalize(feature_ND, dim=1).unflatten(0, (-1, samples_per_prompt))
    cosine = unit @ unit.transpose(1, 2)
    off_diagonal = cosine.sum(dim=(1, 2)) - cosine.diagonal(dim1=1, dim2=2).sum(1)
    return float((1 - off_diagonal / (samples_per_prompt * (samples_per_prompt - 1))).mean())
