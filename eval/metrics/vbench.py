"""VBench's table (Huang et al. 2024): which prompt serves which dimension, their means, and the scores made of these.

Constants and rules are those of github.com/Vchitect/VBench at commit 45e79ec14e69a2187202c675d2dbce1a71843d53
(``scripts/constant.py``, ``scripts/cal_final_score.py``, ``static_filter.py``). eval/README.md says what is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch

from eval.media import check_video
from eval.metrics.encoders import VBENCH
from eval.metrics.flow import Flow
from eval.metrics.motion import longest_flow
from otca.errors import InputError
from otca.files import read_object
from otca.prompts import load_rows
from otca.types import Prompt


@dataclass(frozen=True)
class Dimension:
    """How a dimension's mean counts."""

    part: str  # the score it counts in
    low: float  # becomes 0, unclipped
    high: float  # becomes 1
    weight: float = 1.0


Entry = tuple[Prompt, tuple[str, ...]]  # a row of VBench's list: a prompt and the dimensions that its videos count for
DIMENSIONS = {name: Dimension(**facts) for name, facts in VBENCH["dimensions"].items()}
PART_WEIGHTS = {"quality": 4, "semantic": 1}
SUMS = {part: sum(d.weight for d in DIMENSIONS.values() if d.part == part) for part in PART_WEIGHTS}
SAME = {"temporal_style": "overall_consistency"}
"""Dimension → the column of another that it is computed as, over its own prompts."""
FLICKERING, STATIC = "temporal_flickering", "static"
STATIC_VIDEOS = 5  # static videos of a prompt, by file name, that count for temporal flickering
SCORES = {"quality": ("quality",), "semantic": ("semantic",), "total": ("quality", "semantic")}
"""Score → its parts, weighted by `PART_WEIGHTS`; the quality score is of 7 dimensions, the semantic one of 9."""


def vbench_score(which: str, means: Mapping[str, float]) -> float:
    """One of `SCORES`, of scaled means weighted as VBench does. Raises InputError naming those without a mean (VBench: 0)."""
    needed = {name: d for name, d in DIMENSIONS.items() if d.part in SCORES[which]}
    absent = [name for name in needed if not math.isfinite(means.get(name, math.nan))]
    if absent:
        raise InputError(f"VBench's {which} score needs {len(needed)} dimensions; no mean of {', '.join(absent)}")
    weights = {name: PART_WEIGHTS[d.part] * d.weight / SUMS[d.part] for name, d in needed.items()}
    scaled = {name: (means[name] - d.low) / (d.high - d.low) for name, d in needed.items()}
    return sum(weights[name] * scaled[name] for name in needed) / sum(weights.values())


def read_entries(prompts_file: Path) -> list[Entry] | None:
    """The rows of VBench's ``VBench_full_info.json``; None for any other list, also one with dimensions of other benchmarks."""
    rows = load_rows(str(prompts_file)) if prompts_file.suffix == ".json" else []
    served = [row.cells.get("dimension") for row in rows]
    if not served or not all(isinstance(names, list) and all(name in tuple(DIMENSIONS) for name in names) for names in served):
        return None
    return [(row.prompt, tuple(names)) for row, names in zip(rows, served)]


def dimension_means(rows: pd.DataFrame, entries: Sequence[Entry]) -> pd.DataFrame:
    """Mean of each measured dimension over the videos whose prompt serves it: mean, videos, prompts, listed (prompts in all).

    An entry's videos are those of its id, else of its text: VBench lists two texts twice and counts their videos twice. Temporal
    flickering means the first five static videos of a prompt, where ``rows`` has `STATIC`; else it is
    ``temporal_flickering_unfiltered``. VBench on one GPU weighs the two consistencies by frames.
    """
    rows, out = rows.sort_values("file"), {}
    by_id, by_text = (dict(list(rows.groupby(column))) for column in ("prompt_id", "text"))
    for name in DIMENSIONS:
        column, label = SAME.get(name, name), name
        served = [prompt for prompt, serves in entries if name in serves] if column in rows else []
        videos = [by_id.get(p.id, by_text.get(p.text, rows[:0])) for p in served]
        if name == FLICKERING and STATIC in rows:
            videos = [v[v[STATIC] == 1][:STATIC_VIDEOS] for v in videos]
        elif name == FLICKERING:
            label = f"{FLICKERING}_unfiltered"
        if values := [found for v in videos if len(found := v[column].dropna())]:
            all_values = pd.concat(values)
            out[label] = {"mean": all_values.mean(), "videos": len(all_values), "prompts": len(values), "listed": len(served)}
    return pd.DataFrame.from_dict(out, orient="index", columns=["mean", "videos", "prompts", "listed"])


def read_means(path: Path) -> dict[str, float]:
    """From a JSON file: dimension → mean, or VBench's own ``…_eval_results.json``, dimension → [mean, videos]."""
    means = {}
    for name, value in read_object(path, "means of VBench's dimensions").items():
        value = value[0] if isinstance(value, list) and value else value
        name = name.replace(" ", "_")
        if name not in DIMENSIONS:
            raise InputError(f"{path}: {name!r} is no dimension of VBench ({', '.join(DIMENSIONS)})")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError(f"{path}: the mean of {name} is {value!r}, not a number")
        means[name] = float(value)
    return means


def report(rows: pd.DataFrame, entries: Sequence[Entry], given: Mapping[str, float]) -> str:
    """Lines to print: each dimension's mean and what it is of, then the scores. ``given`` means fill what is not measured."""
    measured = dimension_means(rows, entries)
    lines = ["VBench's dimensions, over the videos whose prompt serves each:"]
    for name, mean, videos, prompts, listed in measured.itertuples():
        lines.append(f"  {name:30} {mean:.4f}  {videos:.0f} videos of {prompts:.0f} of {listed:.0f} prompts")
    means = {**given, **measured["mean"]}
    lines += [f"  {name:30} {given[name]:.4f}  as given" for name in DIMENSIONS if name in given and name not in measured.index]
    for which in SCORES:
        try:
            lines.append(f"VBench's {which} score: {vbench_score(which, means):.4f}")
        except InputError as error:
            lines.append(f"no {which} score: {error}")
    return "\n".join(lines)


def is_static(video_FCHW: torch.Tensor, flow: Flow) -> bool:
    """VBench's filter before temporal flickering: does the video show a still scene?

    A pair of frames moves if the mean length of its longest 2 % of flow vectors exceeds 3·min(H, W)/256 pixels, at any rate. At
    most n = round(2F/16) pairs of neighbours may move, and first and last frame must lie within 2n times that threshold.
    """
    check_video(video_FCHW, 2)
    field = flow.padded if flow.vbench else flow
    threshold, allowed = 3 * min(video_FCHW.shape[2:]) / 256, round(2 * len(video_FCHW) / 16)
    first, last = video_FCHW[0], video_FCHW[-1]
    if max(longest_flow(field(a, b), 0.02) for a, b in ((first, last), (last, first))) > 2 * allowed * threshold:
        return False
    return sum(longest_flow(field(a, b), 0.02) > threshold for a, b in pairwise(video_FCHW)) <= allowed
