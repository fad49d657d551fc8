"""Choose a tier's settings on tuning seeds and the validation split, which no table uses → results/tuning/.

    python -m reproduce.tune --tier quick           learning rate × updates an iteration, static weighting: image-quick.csv
    python -m reproduce.tune --grid regimes         which steps are trained and what objectives weigh, 200 iterations of the
                                                    image task and six methods, with a larger evaluation: image-regimes.csv

One row a run: its settings, its seed, means of rewards and held-out accuracy. All arms of a table then share what is chosen, so
that no method is favoured by settings of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from eval.evaluate import write_rows
from otca import presets
from otca.runs import Arm, is_finished
from reproduce.runner import default_jobs, run_arms

Settings = dict[str, object]

FIRST_TWO: Settings = {"step_selection.kind": "first_k", "step_selection.count": 2}
LONGER: Settings = {"iterations": 200}

RATES = {
    f"lr{rate:g}-updates{updates}": {"optimizer.learning_rate": rate, "optimizer.updates_per_iteration": updates}
    for updates in (1, 2)
    for rate in (1e-4, 2e-4, 4e-4)
}
REGIMES = {
    "all": LONGER,
    "first2": LONGER | FIRST_TWO,
    "first2-weights411": LONGER | FIRST_TWO | {"reward_weights": [4.0, 1.0, 1.0]},
}
REGIME_METHODS = ("static_multi_reward", "otca", "otca_tcd", "otca_moca", "process_credit", "moca_step")

GRIDS: dict[str, tuple[tuple[str, ...], dict[str, Settings], tuple[int, ...], dict[str, object]]] = {
    "rates": (("static_multi_reward",), RATES, (100,), {}),
    "regimes": (REGIME_METHODS, REGIMES, (101, 102, 103), {"prompts": 600, "samples_per_prompt": 3}),
}
"""Name → methods, settings by variant, seeds, changes of the evaluation."""


def arms(medium: str, tier: str, grid: str) -> list[Arm]:
    """The untrained model and the grid, seed by seed."""
    methods, variants, seeds, _ = GRIDS[grid]
    out = []
    for seed in seeds:
        out.append(Arm(medium, tier, "base", seed))
        for variant, settings in variants.items():
            out += [Arm(medium, tier, method, seed, variant, tuple(settings.items())) for method in methods]
    return out


def read_run(folder: Path, arm: Arm) -> dict[str, object]:
    """One row: method, seed, the settings that it changes as JSON, and means over the validation items."""
    items = pd.read_csv(folder / "scores.csv.gz")
    names = presets.train_config(f"{arm.medium}/{arm.tier}", "base", {}, arm.seed).rewards
    means = items[[*names, "judge_correct"]].mean().to_dict()
    return {"method": arm.method, "seed": arm.seed, "variant": arm.variant, "settings": json.dumps(dict(arm.settings)), **means}


def main() -> None:
    """Run the grid below runs/tuning/ on the validation split and write the rows of all finished runs."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--medium", default="image", help="medium (default: image)")
    parser.add_argument("--tier", default="quick", help="tier whose settings to tune (default: quick)")
    parser.add_argument("--grid", choices=tuple(GRIDS), default="rates", help="what to vary (default: rates)")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side (default: one a core; one with a GPU)")
    parser.add_argument("--collect", action="store_true", help="run nothing, write the rows of what is finished")
    args = parser.parse_args()
    name = f"{args.medium}/{args.tier}"
    presets.EVAL[name] = presets.EVAL[name] | {"source": f"embedded:{args.medium}/validation"} | GRIDS[args.grid][3]
    root = Path("runs/tuning") / args.grid
    grid = arms(args.medium, args.tier, args.grid)
    if not args.collect:
        run_arms(grid, root, args.jobs or default_jobs())
    rows = pd.DataFrame([read_run(root / arm.path, arm) for arm in grid if is_finished(root / arm.path)])
    suffix = args.tier if args.grid == "rates" else args.grid
    write_rows(rows, Path("results/tuning") / f"{args.medium}-{suffix}.csv")
    print(rows.drop(columns=["settings"]).groupby(["method", "variant"]).mean().to_string(float_format="%.4f"))


if __name__ == "__main__":
    main()
