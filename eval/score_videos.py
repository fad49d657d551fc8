"""Motion metrics of a folder of videos made by any system: one row a video, also for those that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from eval.media import match_prompts
from eval.metrics.flow import Flow
from eval.metrics.motion import FrameEncoder, MotionMetrics
from eval.videos import DEFAULT_FPS, VIDEO_ENDINGS, natural_key, read_video
from otca.errors import InputError, RewardError
from otca.rewards.base import Reward, score_all
from otca.types import Prompt

FACTS = ("frames", "fps", "height", "width")


def score_videos(
    folder: Path,
    prompts_file: Path | None = None,
    flow: Flow | None = None,
    encoders: Sequence[FrameEncoder] = (),
    scorers: Sequence[Reward] = (),
    default_fps: float = DEFAULT_FPS,
    progress: bool = True,
) -> pd.DataFrame:
    """One row a video, in natural order: file, id and prompt if a list is given, `FACTS`, each metric and scorer, error.

    Videos are the folder's .mp4, .m4v, .mov, .gif and .webp files and its sub-folders of frames. One that cannot be read or
    is too short keeps its row: facts and metrics are empty and ``error`` says why (it is "" elsewhere, so that
    ``rows.error.ne("").sum()`` counts them). The metrics and their protocol are those of `MotionMetrics(flow, encoders)`;
    ``scorers`` (rewards, judges) see one video and its prompt at a time.
    Raises InputError if there is no video, none can be read, prompts and videos do not match (as in `eval.media`), or there
    are scorers but no prompts.
    """
    paths = find_videos(folder)
    if scorers and prompts_file is None:
        raise InputError(f"{', '.join(s.name for s in scorers)} need prompts; give a prompts file")
    prompts = match_prompts([path.name for path in paths], prompts_file, "videos") if prompts_file else None
    metrics, names = MotionMetrics(flow, encoders), [scorer.name for scorer in scorers]
    rows, failed = [], 0
    with tqdm(paths, desc="videos", disable=not progress) as bar:
        for index, path in enumerate(bar):
            row = {"file": path.name}
            if prompts:
                row |= {"id": prompts[index].id, "prompt": prompts[index].text}
            row |= _score_one(path, metrics, default_fps, scorers, prompts[index] if prompts else None)
            rows.append(row)
            failed += bool(row["error"])
            bar.set_postfix(unreadable=failed, refresh=False)
    if failed == len(rows):
        raise InputError(f"{folder}: none of {failed} videos can be scored; the first: {rows[0]['error']}")
    columns = ["file", *(["id", "prompt"] if prompts else []), *FACTS, *metrics.columns, *names, "error"]
    return pd.DataFrame(rows, columns=columns).astype({"frames": "Int64", "height": "Int64", "width": "Int64"})


def find_videos(folder: Path) -> list[Path]:
    """Video files and sub-folders (each one video's frames) in natural order; hidden ones are passed over."""
    if not folder.is_dir():
        raise InputError(f"videos folder {folder} not found")
    seen = (p for p in folder.iterdir() if not p.name.startswith(".") and (p.is_dir() or p.suffix.lower() in VIDEO_ENDINGS))
    paths = sorted(seen, key=lambda path: natural_key(path.name))
    if not paths:
        raise InputError(
            f"videos folder {folder} holds no video ({', '.join(VIDEO_ENDINGS)}, or a sub-folder of frames for each)"
        )
    return paths


def _score_one(path: Path, metrics: MotionMetrics, default_fps: float, scorers: Sequence[Reward], prompt: Prompt | None) -> dict:
    try:
        video = read_video(path, default_fps)
        values = metrics.score(video.frames_FCHW, video.fps)
        if scorers:
            scores = score_all(list(scorers), video.frames_FCHW.unsqueeze(0), [prompt])
            values |= dict(zip(scores.names, scores.reward_BK[0].tolist()))
    except (InputError, RewardError) as error:
        text = str(error)
        return {"error": text if path.name in text else f"video {path}: {text.removeprefix('video ')}"}
    frames, _, height, width = video.frames_FCHW.shape
    return {"frames": frames, "fps": video.fps, "height": height, "width": width, **values, "error": ""}
