"""What ``python -m otca score`` can score by: rewards, the embedded task's held-out judges, motion and quality metrics.

Making a scorer looks its files up and asks a server what it serves; it loads no model.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from eval.held_out import ImageHeldOut, set_rate
from eval.metrics.alignment import VideoJudgeAccuracy
from eval.metrics.encoders import FrameEncoder, clip_encoder, consistency, dino_encoder, embedded_encoder
from eval.metrics.flow import load_flow
from eval.metrics.frame_quality import AestheticQuality, ImagingQuality
from eval.metrics.motion import MotionMetrics
from eval.metrics.vbench import FLICKERING, STATIC, Entry, is_static
from eval.metrics.viclip import ViClip
from eval.score_folder import Score, Scorer
from eval.videos import Video
from otca.config import TrainConfig
from otca.errors import InputError, RewardError
from otca.files import stamp
from otca.rewards.base import REGISTRY, Reward, build_reward, check_prompts, find_reward, is_remote, score_all
from otca.rewards.published import PublishedReward, find_files
from otca.rewards.remote import parsed
from otca.types import Prompt

RAFT = "raft-things.pth"
"""Of the weights of RAFT that VBench reads, the name."""


def reward_scorer(
    name: str, batch: int, device: str = "cpu", files: str = "", timeout: float = TrainConfig.reward_timeout
) -> Scorer:
    """A reward of the registry, of the user's own, or of a server, which is asked for its revision.

    An item that it refuses by an InputError (a video of one frame, say) lacks its score, with an error.
    Raises InputError for an unknown one, one whose files are missing, and a server that does not answer.
    """
    reward_class = find_reward(name)
    file_name = re.sub(r"[^\w.-]+", ".", name)  # of module:class, of an address
    if is_remote(name):
        reward = build_reward(name, device, files, timeout)  # a client, no model
        return Scorer(file_name, lambda: _by_reward(reward), batch, f"{name} {reward.revision}", tolerant=True)
    identity = name
    if issubclass(reward_class, PublishedReward):
        identity += f" {[stamp(path) for path in find_files(reward_class.card, files).values()]}"
    elif name not in REGISTRY and (source := getattr(sys.modules.get(reward_class.__module__), "__file__", None)):
        identity += f" {stamp(Path(source))}"
    return Scorer(file_name, lambda: _by_reward(build_reward(name, device, files, timeout)), batch, identity, tolerant=True)


def check_twice(names: Sequence[str]) -> None:
    """Raise InputError where two rewards would fill the same column. Of the user's own, only what their class says is known."""
    columns: dict[str, str] = {}
    for name in names:
        found = find_reward(name)
        if is_remote(name):
            column = parsed(name)[1]
        elif issubclass(found, PublishedReward):
            column = found.card.name
        else:
            own = getattr(found, "name", None)
            column = own if isinstance(own, str) else name
        if column in columns:
            raise InputError(f"rewards {columns[column]} and {name} both fill the column {column!r}; leave one of them out")
        columns[column] = name


def check_unfit(names: Sequence[str], judge: type | None, prompts: Sequence[Prompt], source: str | Path) -> None:
    """`check_prompts` of the rewards of these names, and of an embedded judge if there is one, before any is loaded.

    A check that is a method of the loaded reward is left out.
    """
    found = [find_reward(name) for name in names] + ([judge] if judge else [])
    known = [one for one in found if isinstance(inspect.getattr_static(one, "check_prompt", None), staticmethod | classmethod)]
    different = {id(prompt): prompt for prompt in prompts}  # that of several samples is one
    check_prompts(known, list(different.values()), str(source))


def held_out_images(batch: int) -> Scorer:
    """The embedded task's judge and CLIP model; every prompt needs a spec."""

    def load() -> Score:
        judges = ImageHeldOut()
        return lambda media, prompts: judges.items(_stacked(media), _given(prompts, "the embedded judges"))

    return Scorer("held_out", load, batch)


def held_out_videos() -> Scorer:
    """The embedded task's video judge; every prompt needs a spec."""
    return Scorer("held_out", lambda: _by_reward(VideoJudgeAccuracy()))


def motion_scorer(raft: Path | None = None, device: str = "cpu") -> Scorer:
    """Every metric of motion, by RAFT if its weights are given; an item that is too short for them lacks them, with an error."""

    def load() -> Score:
        metrics = MotionMetrics(load_flow(raft, device))
        return lambda media, prompts: {
            column: list(values)
            for column, values in zip(metrics.columns, zip(*(metrics.score(v.frames_FCHW, v.fps).values() for v in media)))
        }

    return Scorer("motion", load, identity=str(raft and stamp(_found(raft, "raft", RAFT))), tolerant=True)


def dino_scorer(weights: Path, device: str = "cpu") -> Scorer:
    """Likeness of frames by DINO: `subject_consistency`, if the weights are VBench's."""
    return _frame_scorer(
        "dino", lambda: dino_encoder(weights, device), str(stamp(_found(weights, "dino", "dino_vitbase16_pretrain.pth")))
    )


def clip_scorer(weights: Path, device: str = "cpu") -> Scorer:
    """Likeness of frames by CLIP: `background_consistency`, if the weights are VBench's."""
    return _frame_scorer("clip_frames", lambda: clip_encoder(weights, device), str(stamp(_found(weights, "clip"))))


def embedded_frames_scorer() -> Scorer:
    """Likeness of frames by the embedded open_clip model."""
    return _frame_scorer("embedded_frames", embedded_encoder, "")


def _frame_scorer(name: str, make: Callable[[], FrameEncoder], identity: str) -> Scorer:
    def load() -> Score:
        encoder = make()
        return lambda media, prompts: {encoder.column: [consistency(encoder.encode(v.frames_FCHW)) for v in media]}

    return Scorer(name, load, identity=identity, tolerant=True)


def quality_scorer(make: type[AestheticQuality] | type[ImagingQuality], weights: Path, device: str = "cpu") -> Scorer:
    """VBench's quality of the frames by one of its two models. Raises InputError if ``weights`` is nowhere."""

    def load() -> Score:
        metric = make(weights, device)
        return lambda media, prompts: {metric.column: [metric.score(v.frames_FCHW) for v in media]}

    return Scorer(make.column, load, identity=str(stamp(_found(weights, make.column))))


def viclip_scorer(weights: Path, device: str = "cpu") -> Scorer:
    """Agreement of a video with its prompt by ViCLIP: `overall_consistency`, if the weights are VBench's."""

    def load() -> Score:
        metric = ViClip(weights, device)

        def score(media: Sequence[Video], prompts: Sequence[Prompt | None]) -> dict[str, list[float]]:
            pairs = zip(media, _given(prompts, f"metric {metric.column!r}"))
            return {metric.column: [metric.score(v.frames_FCHW, prompt.text) for v, prompt in pairs]}

        return score

    return Scorer("viclip", load, identity=str(stamp(_found(weights, "overall_consistency", "ViClip-InternVid-10M-FLT.pth"))))


def static_scorer(raft: Path, entries: Sequence[Entry], device: str = "cpu") -> Scorer:
    """VBench's filter before temporal flickering: 1 or 0 for videos whose prompt serves it, nothing for others.

    Other weights than VBench's fill ``static_raft``, which filters nothing.
    """
    texts = {entry.prompt.text for entry in entries if FLICKERING in entry.serves}

    def load() -> Score:
        flow = load_flow(raft, device)
        column = STATIC if flow.vbench else f"{STATIC}_{flow.name}"

        def score(media: Sequence[Video], prompts: Sequence[Prompt | None]) -> dict[str, list[float]]:
            pairs = zip(media, prompts)
            return {column: [float(is_static(v.frames_FCHW, flow)) if p and p.text in texts else float("nan") for v, p in pairs]}

        return score

    return Scorer(STATIC, load, identity=f"{stamp(_found(raft, 'raft', RAFT))} {sorted(texts)}", tolerant=True)


def _found(path: Path, metric: str, file: str = "") -> Path:
    """The path of weights that are there; ``file``: what is published, where it must be one."""
    if not path.exists():
        raise InputError(f"metric {metric!r}: {path} not found")
    if file and not path.is_file():
        raise InputError(f"metric {metric!r}: {path} is no file; give {file} itself")
    return path


def _by_reward(reward: Reward) -> Score:
    def score(media: Sequence[Video], prompts: Sequence[Prompt | None]) -> dict[str, list[float]]:
        set_rate([reward], media[0].fps)
        given = _given(prompts, f"reward {reward.name!r}")
        try:
            scores = score_all([reward], _stacked(media), given)
        except RewardError as error:
            if isinstance(error.__cause__, InputError):  # about these media, not about the reward
                raise error.__cause__ from None
            raise
        return {reward.name: scores.reward_BK[:, 0].tolist()}

    return score


def _stacked(media: Sequence[Video]) -> torch.Tensor:
    return torch.stack([video.frames_FCHW for video in media])


def _given(prompts: Sequence[Prompt | None], who: str) -> list[Prompt]:
    if any(prompt is None for prompt in prompts):
        raise InputError(f"{who} needs prompts; give a prompts file")
    return list(prompts)
