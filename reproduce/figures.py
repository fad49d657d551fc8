"""Figures of a table: learning curves, and samples with the same prompts and noise in every column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from eval.plots import clip_grid, contact_sheet, learning_curves, sample_grid
from eval.videos import read_video
from otca.embedded import scenes, video_scenes

GRID_SEED = 0
"""The run whose samples are shown: the first seed, chosen before any was made."""


def grid_files(folder: Path) -> list[dict]:
    """The first sample of the first prompt of each skill, in the order of the run's prompts.jsonl (rows of that file)."""
    chosen: dict[str, dict] = {}
    for line in (folder / "media" / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        chosen.setdefault(row["spec"]["skill"], row)
    return [chosen[skill] for skill in dict.fromkeys(scenes.SKILLS + video_scenes.SKILLS) if skill in chosen]


def draw_figures(rows_root: Path, medium: str, tier: str, methods: Sequence[str], folder: Path) -> None:
    """Write curves.png, curves.svg and grid.png (and, for videos, clips.webp and clips.mp4) from the runs below ``rows_root``."""
    runs = {m: sorted((rows_root / medium / tier / m).glob("seed*")) for m in methods}
    frames = {m: [pd.read_csv(run / "train.csv") for run in seeds] for m, seeds in runs.items() if m != "base"}
    first = next(iter(frames.values()))[0]
    names = [c.removeprefix("reward_") for c in first.columns if c.startswith("reward_") and c != "reward_calls"]
    learning_curves(frames, names, folder / "curves")

    shown = {m: rows_root / medium / tier / m / f"seed{GRID_SEED}" for m in methods}
    rows = grid_files(next(iter(shown.values())))
    verdicts = {
        m: pd.read_csv(run / "scores.csv.gz").set_index(["prompt_id", "sample"])["judge_correct"] for m, run in shown.items()
    }
    marks = [[bool(verdicts[m][row["id"], 0]) for m in methods] for row in rows]
    files = [[run / "media" / row["file"] for run in shown.values()] for row in rows]
    texts = [row["prompt"] for row in rows]
    if medium == "image":
        sample_grid([[_picture(file) for file in row] for row in files], texts, list(methods), folder / "grid.png", marks)
        return
    clips = [[_clip(file) for file in row] for row in files]
    sample_grid([[contact_sheet(clip) for clip in row] for row in clips], texts, list(methods), folder / "grid.png", marks)
    clip_grid(clips, texts, list(methods), folder / "clips", video_scenes.FPS, marks)


def _picture(file: Path) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _clip(file: Path) -> np.ndarray:
    """RGB frames (F, H, W, 3) uint8."""
    return (read_video(file).frames_FCHW * 255).round().byte().permute(0, 2, 3, 1).numpy()
