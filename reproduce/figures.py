"""Figures of a table: curves and credit of its trainings, what they ended with, samples of the same prompts and noise."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from eval.columns import METRICS
from eval.media import read_video
from eval.plot_curves import credit_maps, credit_shares, learning_curves
from eval.plot_outcomes import rewards_against, skill_profiles, trade_offs
from eval.plots import clip_grid, contact_sheet, sample_grid
from eval.tables import UNTRAINED
from otca.tasks import scenes, video_scenes
from reproduce.costs import Timed, train_seconds, widest_hardware

GRID_SEED = 0
"""The run whose samples are shown: the first seed, chosen before any was made."""


GRID_PROMPTS = 6
"""Prompts of a grid where they have no skill."""


def grid_files(folder: Path) -> list[dict]:
    """Rows of the run's prompts.jsonl: the first sample of the first prompt of each skill, in the skills' own order.

    Where prompts have no skill: of the first `GRID_PROMPTS` prompts.
    """
    chosen: dict[str, dict] = {}
    for line in (folder / "media" / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        chosen.setdefault((row["spec"] or {}).get("skill", row["id"]), row)
    of_skills = [chosen[skill] for skill in dict.fromkeys(scenes.SKILLS + video_scenes.SKILLS) if skill in chosen]
    return of_skills or list(chosen.values())[:GRID_PROMPTS]


def draw_figures(rows_root: Path, modality: str, tier: str, methods: Sequence[str], folder: Path) -> None:
    """Curves, credit maps and samples of the runs below ``rows_root``: PNG and SVG, and for videos clips.webp and clips.mp4."""
    draw_training(rows_root / modality / tier, [method for method in methods if method != UNTRAINED], folder)
    _draw_samples(rows_root / modality / tier, modality, methods, folder)


def draw_training(runs: Path, methods: Sequence[str], folder: Path) -> None:
    """Curves over iterations, network evaluations and seconds, and the maps of credit, as far as the rows have them."""
    found = {method: sorted((runs / method).glob("seed*")) for method in methods}
    frames = {method: [pd.read_csv(run / "train.csv") for run in of] for method, of in found.items()}
    first = next(iter(frames.values()))[0]
    names = [c.removeprefix("reward_") for c in first.columns if c.startswith("reward_") and c != "reward_calls"]
    for spent, suffix in (("iteration", ""), ("network_evaluations", "-evaluations")):
        if all(spent in frame for of_seed in frames.values() for frame in of_seed):
            learning_curves(frames, names, folder / f"curves{suffix}", spent)
    times = train_seconds(runs)
    timed = {method: [times.get((method, run.name)) for run in of] for method, of in found.items()}
    if all(None not in of_seed for of_seed in timed.values()):
        alike, note = on_one_hardware(frames, timed)
        learning_curves(alike, names, folder / "curves-seconds", "seconds", frames, note)
    shares = {method: credit_shares(of_seed, names) for method, of_seed in frames.items()}
    shares = {method: share for method, share in shares.items() if share is not None}
    if shares:
        credit_maps(shares, names, folder / "credit")


def draw_outcomes(rows: pd.DataFrame, runs: Path, metric: str, folder: Path, suffix: str = "") -> None:
    """Trade-offs of the trained objectives, their gain against a held-out metric, profiles over skills.

    rows: those of `eval.tables.collect` that a table shows; ``runs`` is the folder of their modality and tier. What the rows do
    not have (a second trained objective, the metric, its skills, the untrained model) leaves its figure out.
    """
    present = list(rows["metric"].unique())
    trained = [name for name in METRICS if name in present and not METRICS[name].held_out]
    if len(trained) > 1:
        trade_offs(rows, trained, folder / f"trade-offs{suffix}")
    if trained and metric in present and UNTRAINED in set(rows["method"]):
        items = pd.concat([pd.read_csv(path) for path in sorted(runs.glob(f"{UNTRAINED}/seed*/scores.csv.gz"))])
        deviations = {name: float(d) for name, d in items[trained].std(ddof=0).items() if d > 0}
        if deviations:
            rewards_against(rows, metric, deviations, folder / f"rewards-{metric}{suffix}")
    if any(name.startswith(f"{metric}/") for name in present):
        skill_profiles(rows, metric, folder / f"profiles{suffix}")


def on_one_hardware(
    frames: Mapping[str, Sequence[pd.DataFrame]], timed: Mapping[str, Sequence[Timed]]
) -> tuple[dict[str, list[pd.DataFrame]], str]:
    """Rows of train.csv with a column of ``seconds``, of the runs on the hardware that covers most methods, and a note on that.

    Seconds of two kinds of processor are not comparable: methods with no run on that one are left out, and the note names what
    is. A run's seconds are spread evenly over its iterations.
    """
    chosen = widest_hardware((method, run.hardware) for method, of_seed in timed.items() for run in of_seed)
    alike: dict[str, list[pd.DataFrame]] = {}
    left_out = []
    for method, of_seed in timed.items():
        kept = [(rows, run.seconds) for rows, run in zip(frames[method], of_seed) if run.hardware == chosen]
        if kept:
            alike[method] = [rows.assign(seconds=np.linspace(0, total, len(rows) + 1)[1:]) for rows, total in kept]
        if len(kept) < len(of_seed):
            left_out.append(f"{method} ({len(of_seed) - len(kept)} of {len(of_seed)} runs)" if kept else method)
    note = f"Runs on {chosen}."
    return alike, f"{note} Left out, having run on another: {'; '.join(left_out)}." if left_out else note


def _draw_samples(runs: Path, modality: str, methods: Sequence[str], folder: Path) -> None:
    """The sample grid, and for videos the same grid playing."""
    shown = {m: runs / m / f"seed{GRID_SEED}" for m in methods}
    rows = grid_files(next(iter(shown.values())))
    verdicts = {
        m: pd.read_csv(run / "scores.csv.gz").set_index(["prompt_id", "sample"])["judge_correct"] for m, run in shown.items()
    }
    marks = [[bool(verdicts[m][row["id"], 0]) for m in methods] for row in rows]
    files = [[run / "media" / row["file"] for run in shown.values()] for row in rows]
    texts = [row["prompt"] for row in rows]
    if modality == "image":
        sample_grid([[_picture(file) for file in row] for row in files], texts, list(methods), folder / "grid.png", marks)
        return
    clips = [[_clip(file) for file in row] for row in files]
    sample_grid([[contact_sheet(clip) for clip in row] for row in clips], texts, list(methods), folder / "grid.png", marks)
    clip_grid(clips, texts, list(methods), folder / "clips", video_scenes.FPS, marks)


def still(file: Path) -> np.ndarray:
    """A picture, or the frames of a clip in reading order: RGB pixels (H, W, 3) uint8."""
    return contact_sheet(_clip(file)) if file.suffix == ".webp" else _picture(file)


def _picture(file: Path) -> np.ndarray:
    """RGB pixels (H, W, 3) uint8."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def _clip(file: Path) -> np.ndarray:
    """RGB frames (F, H, W, 3) uint8."""
    return (read_video(file).frames_FCHW * 255).round().byte().permute(0, 2, 3, 1).numpy()
