"""What ``python -m otca score`` can score by: rewards, the embedded task's held-out judges, motion and quality metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.held_out import ImageHeldOut
from eval.metrics.alignment import VideoJudgeAccuracy
from eval.metrics.encoders import FrameEncoder
from eval.metrics.flow import load_flow
from eval.metrics.frame_quality import AestheticQuality, ImagingQuality
from eval.metrics.motion import MotionMetrics
from eval.metrics.vbench import FLICKERING, STATIC, Entry, is_static
from eval.score_folder import Scorer
from eval.videos import Video
from otca.config import TrainConfig
from otca.errors import InputError
from otca.rewards.base import Reward, build_reward, find_reward, score_all
from otca.rewards.published import PublishedReward, find_files
from otca.types import Prompt


def reward_scorer(
    name: str, batch: int, device: str = "cpu", files: str = "", timeout: float = TrainConfig.reward_timeout
) -> Scorer:
    """A reward of the registry or of the user's own. Raises InputError for an unknown one, or one whose files are missing."""
    reward_class = find_reward(name)
    identity = name
    if issubclass(reward_class, PublishedReward):
        weights = find_files(reward_class.card, files).values()
        identity = f"{name} {[_stamp(path) for path in weights]}"
    file_name = re.sub(r"[^\w.-]+", ".", name)  # of module:class, of an address
    return Scorer(file_name, lambda: _by_reward(build_reward(name, device, files, timeout)), batch, identity)


def held_out_images(batch: int) -> Scorer:
    """The embedded task's judge and CLIP model; every prompt needs a spec."""

    def load():
        judges = ImageHeldOut()
        return lambda media, prompts: judges.items(_stacked(media), _given(prompts, "the embedded judges"))

    return Scorer("held_out", load, batch)


def held_out_videos() -> Scorer:
    """The embedded task's video judge; every prompt needs a spec."""
    return Scorer("held_out", lambda: _by_reward(VideoJudgeAccuracy()))


def motion_scorer(raft: Path | None, encoders: Sequence[FrameEncoder]) -> Scorer:
    """Every motion metric; an item that is too short for them keeps its row with an error."""

    def load():
        metrics = MotionMetrics(load_flow(raft), encoders)
        return lambda media, prompts: {
            column: list(values)
            for column, values in zip(metrics.columns, zip(*(metrics.score(v.frames_FCHW, v.fps).values() for v in media)))
        }

    identity = f"{raft} {[(e.column, sorted(e.protocol.items())) for e in encoders]}"
    return Scorer("motion", load, identity=identity, tolerant=True)


def quality_scorer(make: type[AestheticQuality] | type[ImagingQuality], weights: Path, device: str = "cpu") -> Scorer:
    """VBench's quality of the frames by one of its two models. Raises InputError if ``weights`` is nowhere."""
    if not weights.exists():
        raise InputError(f"metric {make.column!r}: {weights} not found")

    def load():
        metric = make(weights, device)
        return lambda media, prompts: {make.column: [metric.score(v.frames_FCHW) for v in media]}

    return Scorer(make.column, load, identity=str(_stamp(weights)))


def static_scorer(raft: Path, entries: Sequence[Entry]) -> Scorer:
    """VBench's filter before temporal flickering: 1 or 0 for videos whose prompt serves it, nothing for others.

    Other weights than VBench's fill ``static_raft``, which filters nothing.
    """
    texts = {entry.prompt.text for entry in entries if FLICKERING in entry.serves}

    def load():
        flow = load_flow(raft)
        column = STATIC if flow.vbench else f"{STATIC}_{flow.name}"

        def score(media: Sequence[Video], prompts: Sequence[Prompt | None]) -> dict[str, list[float]]:
            pairs = zip(media, prompts)
            return {column: [float(is_static(v.frames_FCHW, flow)) if p and p.text in texts else float("nan") for v, p in pairs]}

        return score

    return Scorer(STATIC, load, identity=f"{raft} {sorted(texts)}", tolerant=True)


def _stamp(path: Path) -> list[tuple[str, int, int]]:
    """Changes with the file, or with any file of the folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _by_reward(reward: Reward):
    def score(media: Sequence[Video], prompts: Sequence[Prompt | None]) -> dict[str, list[float]]:
        scores = score_all([reward], _stacked(media), _given(prompts, f"reward {reward.name!r}"))
        return {reward.name: scores.reward_BK[:, 0].tolist()}

    return score


def _stacked(media: Sequence[Video]) -> torch.Tensor:
    return torch.stack([video.frames_FCHW for video in media])


def _given(prompts: Sequence[Prompt | None], who: str) -> list[Prompt]:
    if any(prompt is None for prompt in prompts):
        raise InputError(f"{who} needs prompts; give a prompts file")
    return list(prompts)
