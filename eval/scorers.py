"""What media can be scored by: rewards, the embedded tasks' held-out judges, metrics of motion and of VBench.

Making a scorer looks its files up and asks a server what it serves; it loads no model.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from eval.held_out import set_rate
from eval.items import Item
from eval.media import Video
from eval.metrics.encoders import clip_encoder, dino_encoder, embedded_encoder
from eval.metrics.flow import DisFlow, RaftFlow
from eval.metrics.frame_quality import AestheticQuality, ImagingQuality
from eval.metrics.motion import MotionMetrics
from eval.metrics.vbench import FLICKERING, STATIC, Entry, is_static
from eval.metrics.viclip import ViClip
from otca import presets
from otca.config import TrainConfig
from otca.errors import InputError, RewardError
from otca.files import stamp
from otca.rewards.base import REGISTRY, Reward, build_reward, check_prompts, column_of, find_reward, is_remote, score_all
from otca.rewards.pixels import check_ratio, to_pictures
from otca.rewards.published import MAX_RATIO, PublishedReward, find_files
from otca.types import Prompt

OWN = {
    "images": (TrainConfig().rewards, ["eval.metrics.embedded:JudgeAccuracy", "eval.metrics.embedded:ClipScore"]),
    "videos": (presets.preset("video/quick")["rewards"], ["eval.metrics.embedded:VideoJudgeAccuracy"]),
}
"""The embedded tasks' rewards and held-out metrics, for prompts that have specs."""

RAFT, VICLIP = "raft-things.pth", "ViClip-InternVid-10M-FLT.pth"  # files that are no folders

Score = Callable[[Sequence[Video], Sequence[Prompt]], dict[str, list[float]]]  # to columns with one value an item
Metric = Callable[[Video, Prompt], dict[str, float]]  # from a video and its prompt to columns


@dataclass(frozen=True)
class Scorer:
    """``load`` brings the model into memory; ``identity`` tells its weights and settings, so that others' scores are not kept."""

    name: str
    load: Callable[[], Score]
    batch: int = 1
    identity: str = ""

    def key(self, item: Item) -> str:
        """What an item's row in the partial file goes by."""
        return hashlib.sha256(f"{self.identity} {item.key}".encode()).hexdigest()[:20]


def all_scorers(given, entries: Sequence[Entry] | None, prompts: Sequence[Prompt]) -> list[Scorer]:
    """What an `eval.score.ScoreConfig` asks for; ``entries``: of VBench's list, if it is that; ``prompts``: of each item."""
    own, held_out = OWN["images" if given.images else "videos"]
    if not all(prompt.spec for prompt in prompts):
        own = held_out = []
    names = own if given.rewards is None else [name.strip() for name in given.rewards.strip("[]").split(",") if name.strip()]
    names = [*names, *(held_out if given.held_out else ())]
    check_rewards(names, prompts, given.prompts)
    out = video_scorers(given, entries) if given.videos else []
    out += [reward_scorer(name, given.batch, given.device, given.reward_files, given.reward_timeout) for name in names]
    if not out:
        raise InputError(f"nothing to score by: the prompts of {given.prompts} have no spec; name rewards with --rewards")
    return out


def reward_scorer(
    name: str, batch: int, device: str = "cpu", files: str = "", timeout: float = TrainConfig.reward_timeout
) -> Scorer:
    """A reward of the registry, of the user's own, or of a server, which is asked for its revision."""
    reward_class, identity = find_reward(name), name
    build = partial(build_reward, name, device, files, timeout)
    if is_remote(name):
        client = build()  # no model
        build, identity = (lambda: client), f"{name} {client.revision}"
    elif issubclass(reward_class, PublishedReward):
        identity += f" {[stamp(path) for path in find_files(reward_class.card, files).values()]}"
    elif name not in REGISTRY and (source := getattr(sys.modules.get(reward_class.__module__), "__file__", None)):
        identity += f" {stamp(Path(source))}"
    file_name = re.sub(r"[^\w.-]+", ".", name)  # of module:class, of an address
    return Scorer(file_name, lambda: partial(_score_by, build()), batch, identity)


def check_rewards(names: Sequence[str], prompts: Sequence[Prompt], source: str | Path) -> None:
    """Raise InputError, before any is loaded, for two rewards that fill one column and for prompts that one cannot judge."""
    columns: dict[str, str] = {}
    for name in names:
        other = columns.setdefault(column := column_of(name), name)
        if other is not name:
            raise InputError(f"rewards {other} and {name} both fill the column {column!r}; leave one of them out")
    found = [find_reward(name) for name in names]
    known = [one for one in found if not inspect.isfunction(inspect.getattr_static(one, "check_prompt", None))]
    check_prompts(known, list({id(prompt): prompt for prompt in prompts}.values()), str(source))


def _score_by(reward: Reward, media: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, list[float]]:
    """Of pictures as they were decoded, where the reward takes these: published preprocessing resizes before it makes RGB."""
    set_rate([reward], media[0].fps)
    asked = reward
    if hasattr(reward, "score_pictures") and any(video.picture for video in media):
        pictures = [video.picture or to_pictures(video.frames_FCHW)[0] for video in media]
        score = partial(reward.score_pictures, pictures, [prompt.text for prompt in prompts])
        asked = SimpleNamespace(name=reward.name, seconds=getattr(reward, "seconds", 0.0), score=lambda *_: score())
    try:
        scores = score_all([asked], torch.stack([video.frames_FCHW for video in media]), list(prompts))
    except RewardError as error:
        if isinstance(error.__cause__, InputError):  # about these media, not about the reward
            raise error.__cause__ from None
        raise
    return {reward.name: scores.reward_BK[:, 0].tolist()}


def metric_scorer(name: str, load: Callable[[], Metric], weights: Path | None = None, file: str = "") -> Scorer:
    """A metric of one video at a time, with a file of ``weights`` (``file``: its published name) or a folder of them."""
    if weights and not weights.exists():
        raise InputError(f"metric {name!r}: {weights} not found")
    if weights and file and not weights.is_file():
        raise InputError(f"metric {name!r}: {weights} is no file; give {file} itself")

    def loaded() -> Score:
        metric = load()

        def score(media: Sequence[Video], prompts: Sequence[Prompt]) -> dict[str, list[float]]:
            rows = [metric(video, prompt) for video, prompt in zip(media, prompts)]
            return {column: [row[column] for row in rows] for column in rows[0]}

        return score

    return Scorer(name, loaded, 1, str(weights and stamp(weights)))


def motion(raft: Path | None, device: str) -> Metric:
    """Every metric of motion, by RAFT if its weights are given; too short a video lacks them, with an error."""
    metrics = MotionMetrics(RaftFlow(raft, device) if raft else DisFlow())

    def score(video: Video, _: Prompt) -> dict[str, float]:
        height, width = video.frames_FCHW.shape[2:]
        check_ratio("motion", width, height, MAX_RATIO)  # flow is of frames enlarged by their shorter side
        return metrics.score(video.frames_FCHW, video.fps)

    return score


def one_column(make: Callable, *arguments: object) -> Metric:
    """A metric that fills its ``column`` with its ``score(video_FCHW, text)``."""
    metric = make(*arguments)
    return lambda video, prompt: {metric.column: metric.score(video.frames_FCHW, prompt.text)}


def stillness(raft: Path, entries: Sequence[Entry], device: str) -> Metric:
    """VBench's filter before temporal flickering: 1 or 0 for videos whose prompt serves it (other weights: ``static_raft``)."""
    texts = {prompt.text for prompt, serves in entries if FLICKERING in serves}
    flow = RaftFlow(raft, device)
    column = STATIC if flow.vbench else f"{STATIC}_{flow.name}"
    return lambda video, prompt: {column: float(is_static(video.frames_FCHW, flow)) if prompt.text in texts else float("nan")}


def video_scorers(given, entries: Sequence[Entry] | None) -> list[Scorer]:
    """Metrics of videos alone, as `eval.score.ScoreConfig` asks for them; ``entries``: of VBench's list, if prompts are that."""
    if given.raft and not given.motion and not entries:
        raise InputError("--raft is for metrics of motion, which --motion false leaves out; leave out one of the two")
    device = given.device
    wanted = (
        (given.motion, "motion", partial(motion, given.raft, device), given.raft, RAFT),
        (given.motion and not given.dino and not given.clip, "embedded_frames", partial(one_column, embedded_encoder)),
        (given.dino, "subject_consistency", partial(one_column, dino_encoder, given.dino, device), given.dino),
        (given.clip, "background_consistency", partial(one_column, clip_encoder, given.clip, device), given.clip),
        (given.aesthetic, "aesthetic_quality", partial(one_column, AestheticQuality, given.aesthetic, device), given.aesthetic),
        (given.musiq, "imaging_quality", partial(one_column, ImagingQuality, given.musiq, device), given.musiq),
        (given.viclip, "overall_consistency", partial(one_column, ViClip, given.viclip, device), given.viclip, VICLIP),
        (given.raft and entries, STATIC, partial(stillness, given.raft, entries, device), given.raft, RAFT),
    )
    return [metric_scorer(*scorer) for asked, *scorer in wanted if asked]
