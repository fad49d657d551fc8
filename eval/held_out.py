"""What no reward sees, modality by modality: columns a media item, and numbers a set of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from eval.columns import METRICS
from eval.media import quantise
from eval.metrics import embedded
from eval.metrics.encoders import EMBEDDED, embedded_encoder
from eval.metrics.motion import MotionMetrics
from otca import presets
from otca.config import EvalConfig, TrainConfig
from otca.rewards.base import Reward, build_rewards, score_all
from otca.tasks import rendering, scenes, video_scenes
from otca.types import Prompt

Numbers = dict[str, tuple[float, int]]  # metric → its value over a set, and the number of items behind it

MOTION = "motion"  # name of the motion metrics among held-out metrics
_VERDICTS = ("judge_correct", *(name for name in METRICS if name.partition("/")[0] == "accuracy"))
_OF_SETS = ("kernel_distance", "frechet_distance", "diversity")


def reward_columns(rewards: list[Reward], media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, list[float]]:
    """A column a reward, with one value an item."""
    if not rewards:
        return {}
    scores = score_all(rewards, media_BFCHW, prompts)
    return dict(zip(scores.names, scores.reward_BK.T.tolist()))


class HeldOut:
    """Held-out evaluation of one modality, by scorers and metrics of motion; ``protocol`` says how each metric was taken."""

    def __init__(self, scorers: Sequence[Reward], protocol: dict, motion: MotionMetrics | None = None, fps: float = 0.0):
        self.scorers, self.motion, self.fps = list(scorers), motion, fps
        self.protocol: dict[str, dict[str, str]] = protocol | (motion.protocol if motion else {})

    def items(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, list[float]]:
        """Columns with one value an item: one a scorer, and those of `MotionMetrics`."""
        out = reward_columns(self.scorers, media_BFCHW, prompts)
        if self.motion:
            found = [self.motion.score(clip, self.fps) for clip in tqdm(media_BFCHW, "motion", leave=False, delay=10)]
            out |= {column: [row[column] for row in found] for column in self.motion.columns}
        return out

    def traits(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """What `sets` needs to know of each item: tensors (B, …)."""
        return {}

    def sets(self, traits: dict[str, torch.Tensor], prompts: list[Prompt], samples_per_prompt: int) -> Numbers:
        """Metrics of the whole set, from the traits of all its items; samples of a prompt are neighbours."""
        return {}


class _Embedded(HeldOut):
    """What both embedded tasks share: distances to drawings of the same specs, and diversity, by ``features`` of media."""

    def traits(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """Features of each item."""
        return {"features": self.features(media_BFCHW)}

    def sets(self, traits: dict[str, torch.Tensor], prompts: list[Prompt], samples_per_prompt: int) -> Numbers:
        """kernel_distance, frechet_distance (from 2,000 items on) and, with several samples a prompt, diversity."""
        rng = np.random.default_rng(20260423)  # the same drawings at every call, one a prompt
        drawn_BFCHW = np.stack([self.drawn(prompt, rng) for prompt in prompts])
        reference_BD, features_BD = self.features(quantise(torch.from_numpy(drawn_BFCHW))), traits["features"]
        out, count = {"kernel_distance": embedded.kernel_distance(features_BD, reference_BD)}, len(features_BD)
        if count >= embedded.FRECHET_SAMPLES:
            out["frechet_distance"] = embedded.frechet_distance(features_BD, reference_BD)
        if samples_per_prompt > 1:
            out["diversity"] = embedded.diversity(features_BD, samples_per_prompt)
        return {name: (value, count) for name, value in out.items()}


class ImageHeldOut(_Embedded):
    """Exact verdict of the learned judge, CLIP score; kernel and Fréchet distance to renders of the same specs, diversity."""

    metrics: ClassVar[tuple[str, ...]] = (*_VERDICTS, "clip_score", *_OF_SETS)
    """Names of all that it measures, in files and tables."""

    def __init__(self):
        self.clip, self.judge = embedded.embedded_clip(), embedded.JudgeAccuracy()
        scorers = (self.judge, embedded.ClipScore(self.clip))
        super().__init__(scorers, {scorer.name: scorer.protocol for scorer in scorers})

    def features(self, media_BFCHW: torch.Tensor) -> torch.Tensor:
        """Image features (B, D) of the embedded open_clip model."""
        return self.clip.image_features(media_BFCHW)

    @staticmethod
    def drawn(prompt: Prompt, rng: np.random.Generator) -> np.ndarray:
        """A render of the prompt's spec (1, 3, H, W)."""
        return rendering.render(scenes.draw_scene(prompt.spec, rng, lattice=True))[None]


class VideoHeldOut(_Embedded):
    """Exact verdict of the learned video judge, motion metrics; direction and speed accuracy, kernel distance, diversity."""

    metrics: ClassVar[tuple[str, ...]] = (
        *(*_VERDICTS, "direction_accuracy", "speed_accuracy", MOTION, EMBEDDED, *_OF_SETS),
        "clip_score",  # of the model whose features the distances compare
    )

    def __init__(self):
        self.clip, self.judge = embedded.embedded_clip(), embedded.VideoJudgeAccuracy()
        motion = MotionMetrics(encoders=[embedded_encoder(self.clip)])
        super().__init__([self.judge], {self.judge.name: self.judge.protocol}, motion, video_scenes.FPS)

    def traits(self, media_BFCHW: torch.Tensor, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """Features, and whether direction and speed are right where the prompt states them (else NaN)."""
        right = self.judge.judge.accuracy(media_BFCHW, prompts)
        return super().traits(media_BFCHW, prompts) | {name: right[name] for name in ("direction", "speed")}

    def sets(self, traits: dict[str, torch.Tensor], prompts: list[Prompt], samples_per_prompt: int) -> Numbers:
        """direction_accuracy and speed_accuracy of the prompts that state them, kernel and Fréchet distance, diversity."""
        stated = {name: traits[name][~traits[name].isnan()] for name in ("direction", "speed")}
        right = {f"{name}_accuracy": (float(of.mean()), len(of)) for name, of in stated.items() if len(of)}
        return right | super().sets(traits, prompts, samples_per_prompt)

    def features(self, media_BFCHW: torch.Tensor) -> torch.Tensor:
        """Mean over frames of the embedded open_clip model's image features, then last frame minus first: (B, 2·D)."""
        features_BFD = self.clip.image_features(media_BFCHW.flatten(0, 1)[:, None]).unflatten(0, media_BFCHW.shape[:2])
        return torch.cat([features_BFD.mean(1), features_BFD[:, -1] - features_BFD[:, 0]], dim=1)

    @staticmethod
    def drawn(prompt: Prompt, rng: np.random.Generator) -> np.ndarray:
        """A render of the prompt's spec (F, 3, H, W)."""
        return video_scenes.render_clip(video_scenes.draw_clip(prompt.spec, rng, lattice=True))


MEDIA: dict[str, type[ImageHeldOut | VideoHeldOut]] = {"image": ImageHeldOut, "video": VideoHeldOut}
"""Medium → held-out evaluation of its embedded task."""


def held_out_of(
    modality: str,
    config: EvalConfig,
    device: torch.device | str = "cpu",
    files: str = "",
    timeout: float = TrainConfig.reward_timeout,
) -> HeldOut:
    """That of the embedded task, or of metrics by name, none of whole sets: rewards that no arm trains on, and "motion"."""
    if not config.held_out:
        return MEDIA[modality]()
    rewards = build_rewards([name for name in config.held_out if name != MOTION], device, files, timeout)
    set_rate(rewards, config.fps)
    protocol = {reward.name: {"source": reward.source, "revision": reward.revision} for reward in rewards}
    return HeldOut(rewards, protocol, MotionMetrics() if MOTION in config.held_out else None, config.fps)


def held_out_names(place: str) -> list[str]:
    """What the evaluation of ``modality/tier`` holds out, by the names that files and tables have for it; no run may train on it.

    A preset that has no evaluation, as the recipes at scale, holds nothing out: what its runs are judged by is not known.
    """
    if place not in presets.EVAL:
        return []
    names = presets.eval_config(place).held_out or MEDIA[place.partition("/")[0]].metrics
    return [*names, *(MotionMetrics().columns if MOTION in names else ())]


def set_rate(rewards: Sequence[Reward], fps: float) -> None:
    """Tell the media's frames a second to rewards that depend on them, which have an ``fps``; 0, of pictures, is not told."""
    for reward in rewards:
        if fps > 0 and hasattr(reward, "fps"):
            reward.fps = float(fps)
