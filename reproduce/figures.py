"""Figures of a table: learning curves, and a grid of samples with the same prompts and noise in every column."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from eval.plots import learning_curves, sample_grid
from otca.embedded.scenes import SKILLS

GRID_SEED = 0
"""The run whose samples are shown: the first seed, chosen before any was made."""


def grid_files(folder: Path) -> list[dict]:
    """The first sample of the first prompt of each skill, in the order of the run's prompts.jsonl (rows of that file)."""
    chosen: dict[str, dict] = {}
    for line in (folder / "media" / "prompts.jsonl").read_text().splitlines():
        row = json.loads(line)
        chosen.setdefault(row["spec"]["skill"], row)
    return [chosen[skill] for skill in SKILLS if skill in chosen]


def draw_figures(rows_root: Path, medium: str, tier: str, methods: Sequence[str], folder: Path) -> None:
    """Write curves.png, curves.svg and grid.png into ``folder`` from the runs below ``rows_root``."""
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
    sample_grid(
        images=[[run / "media" / row["file"] for run in shown.values()] for row in rows],
        row_labels=[row["prompt"] for row in rows],
        column_labels=list(methods),
        path=folder / "grid.png",
        verdicts=[[bool(verdicts[m][row["id"], 0]) for m in methods] for row in rows],
    )
