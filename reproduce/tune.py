"""Choose a tier's settings on tuning seeds: `python -m reproduce.tune --tier quick` → results/tuning/image-quick.csv.

Every cell of the grid (learning rate × optimizer updates an iteration) runs with the static multi-reward baseline on seeds
that no table uses; the validation split's mean rewards and held-out accuracy are written, one row a run, with the untrained
model's first. All arms of the table then share the winner, so that no method is favoured by settings of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from eval.evaluate import write_rows
from otca import presets
from otca.runs import Arm
from reproduce.runner import arm_config, default_jobs, run_arms

RATES = (1e-4, 2e-4, 4e-4)
UPDATES = (1, 2)
SEEDS = (100,)
METHOD = "static_multi_reward"


def arms(medium: str, tier: str) -> list[Arm]:
    """The untrained model and the grid, seed by seed."""
    out = []
    for seed in SEEDS:
        out.append(Arm(medium, tier, "base", seed))
        for updates in UPDATES:
            for rate in RATES:
                settings = (("optimizer.learning_rate", rate), ("optimizer.updates_per_iteration", updates))
                out.append(Arm(medium, tier, METHOD, seed, f"lr{rate:g}-updates{updates}", settings))
    return out


def read_run(folder: Path, arm: Arm) -> dict[str, object]:
    """One row: the settings, the seed, and means over the validation items."""
    items, optimizer = pd.read_csv(folder / "scores.csv.gz"), arm_config(arm).optimizer
    trained = arm.method != "base"
    return {
        "method": arm.method,
        "learning_rate": optimizer.learning_rate if trained else 0.0,
        "updates": optimizer.updates_per_iteration if trained else 0,
        "seed": arm.seed,
        **items[[*arm_config(arm).rewards, "judge_correct"]].mean().to_dict(),
    }


def main() -> None:
    """Run the grid below runs/tuning/ on the validation split and write its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    table = rows.drop(columns=["method", "seed"]).groupby(["learning_rate", "updates"]).mean()
    print(table.to_string(float_format="%.4f"))


if __name__ == "__main__":
    main()
