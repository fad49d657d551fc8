"""What runs cost in seconds: measured beside each run, published apart from the rows, which do not depend on the clock."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from eval.evaluate import write_rows
from eval.tables import BASELINE, UNTRAINED
from otca.files import write_atomic

COST = "cost.json"
COLUMNS = ["method", "seed", "train_seconds", "evaluate_seconds", "hardware"]


def hardware() -> str:
    """Processor or GPU, cores and library version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, torch {torch.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def write_cost(run: Path, evaluate_seconds: float) -> None:
    """Write the run's `cost.json`; training seconds are those of timing.csv, so a resumed run counts what was kept."""
    timing = run / "timing.csv"
    trained = float(pd.read_csv(timing)["total"].sum()) if timing.is_file() else 0.0
    cost = {"train_seconds": round(trained, 1), "evaluate_seconds": round(evaluate_seconds, 1), "hardware": hardware()}
    write_atomic(run / COST, json.dumps(cost) + "\n")


def publish_costs(runs: list[Path], path: Path) -> None:
    """One row a run (`COLUMNS`) from the runs' `cost.json`."""
    rows = [
        {"method": run.parent.name, "seed": int(run.name.removeprefix("seed"))} | json.loads((run / COST).read_text())
        for run in runs
    ]
    write_rows(pd.DataFrame(rows, columns=COLUMNS), path)


@dataclass(frozen=True)
class Timed:
    """Seconds that a run's training took, and what it ran on (as `hardware` says)."""

    seconds: float
    hardware: str


def train_seconds(runs: Path) -> dict[tuple[str, str], Timed]:
    """(method, seed folder) → seconds of training, of the runs of a modality and tier: published, or measured beside each run."""
    if (runs / "cost.csv").is_file():
        rows = pd.read_csv(runs / "cost.csv")
        columns = (rows[name] for name in ("method", "seed", "train_seconds", "hardware"))
        return {(method, f"seed{seed}"): Timed(seconds, machine) for method, seed, seconds, machine in zip(*columns)}
    found = {path.parent: json.loads(path.read_text()) for path in runs.glob(f"*/seed*/{COST}")}
    return {(run.parent.name, run.name): Timed(cost["train_seconds"], cost["hardware"]) for run, cost in found.items()}


def widest_hardware(made_on: Iterable[tuple[str, str]]) -> str:
    """Of each run's (method, hardware), the hardware that most methods have runs on; then that of most runs; then by name."""
    runs = sorted(made_on)
    kinds = {machine: [method for method, own in runs if own == machine] for machine in sorted({own for _, own in runs})}
    return max(kinds, key=lambda machine: (len(set(kinds[machine])), len(kinds[machine])))


def cost_line(path: Path, methods: Collection[str]) -> str:
    """What the published runs of some methods at a modality and tier took, in one sentence."""
    rows = pd.read_csv(path)
    rows = rows[rows["method"].isin(methods)]
    train, evaluate = rows["train_seconds"].sum() / 60, rows["evaluate_seconds"].sum() / 60
    machines = "; ".join(sorted(set(rows["hardware"])))
    return (
        f"Measured: {len(rows)} runs, {train:.1f} minutes of training and {evaluate:.1f} of evaluation on one core each: "
        f"about {(train + evaluate) / 2:.0f} minutes on two ({machines}).{_ratios(rows)}"
    )


def total_cost_line(paths: Sequence[Path]) -> str:
    """What all published runs of a tier took, in one sentence; ``paths``: the cost.csv of each modality."""
    rows = pd.concat([pd.read_csv(path) for path in paths])
    hours = rows[["train_seconds", "evaluate_seconds"]].sum() / 3600
    return (
        f"Measured: {len(rows)} runs, {hours['train_seconds']:.1f} hours of training and {hours['evaluate_seconds']:.1f} of "
        f"evaluation on one core each: about {hours.sum() / 2:.1f} hours on two ({'; '.join(sorted(set(rows['hardware'])))})."
    )


def _ratios(rows: pd.DataFrame) -> str:
    """A sentence on the seconds of training of each other method for one of the baseline's, of the seeds that both ran on one
    kind of machine; empty where there are none."""
    paired = rows.merge(rows[rows["method"] == BASELINE], on=["seed", "hardware"], suffixes=("", "_baseline"))
    sums = paired.groupby("method", sort=False)[["train_seconds", "train_seconds_baseline"]].sum()
    ratios = (sums["train_seconds"] / sums["train_seconds_baseline"]).drop(index=[BASELINE, UNTRAINED], errors="ignore")
    if ratios.empty:
        return ""
    said = ", ".join(f"{method} {ratio:.2f}" for method, ratio in ratios.items())
    return f" Seconds of training for each one of {BASELINE}'s, same seeds and processor: {said}."
