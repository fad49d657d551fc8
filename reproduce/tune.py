"""Choose the learning rate on tuning seeds: `python -m reproduce.tune --tier quick` → results/tuning/image-quick.csv.

Every rate of the grid runs with the static multi-reward baseline on seeds that no table uses; the validation split's mean
reward and held-out accuracy are written, one row a run. All arms of the table then share the winner, so that no method is
favoured by a rate of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from eval.evaluate import write_rows
from otca import presets
from otca.runs import Arm
from reproduce.runner import default_jobs, run_arms

GRID = (3e-5, 1e-4, 3e-4, 1e-3)
SEEDS = (100,)
METHOD = "static_multi_reward"


def arms(medium: str, tier: str) -> list[Arm]:
    """The grid, seed by seed."""
    return [
        Arm(medium, tier, METHOD, seed, f"lr{rate:g}", (("optimizer.learning_rate", rate),)) for seed in SEEDS for rate in GRID
    ]


def read_run(folder: Path, arm: Arm) -> dict[str, float]:
    """One row: the rate, the seed, and means over the validation items."""
    items = pd.read_csv(folder / "scores.csv.gz")
    means = items[["alignment", "quality", "aesthetic", "judge_correct"]].mean()
    return {
        "method": arm.method,
        "learning_rate": dict(arm.settings)["optimizer.learning_rate"],
        "seed": arm.seed,
    } | means.to_dict()


def main() -> None:
    """Run the grid below runs/tuning/ on the validation split and write its rows."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.tune", description=__doc__)
    parser.add_argument("--medium", default="image", help="medium (default: image)")
    parser.add_argument("--tier", default="quick", help="tier whose settings to tune (default: quick)")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side (default: one a core; one with a GPU)")
    args = parser.parse_args()
    name = f"{args.medium}/{args.tier}"
    presets.EVAL[name] = presets.EVAL[name] | {"source": f"embedded:{args.medium}/validation"}
    root = Path("runs/tuning")
    grid = arms(args.medium, args.tier)
    run_arms(grid, root, args.jobs or default_jobs())
    rows = pd.DataFrame([read_run(root / arm.path, arm) for arm in grid])
    write_rows(rows, Path("results/tuning") / f"{args.medium}-{args.tier}.csv")
    print(rows.groupby("learning_rate").mean(numeric_only=True).drop(columns="seed").to_string(float_format="%.4f"))


if __name__ == "__main__":
    main()
