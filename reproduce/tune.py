"""Settings chosen on tuning seeds and validation prompts, none of which a table uses → results/tuning/<modality>-<tier>.csv.

    python -m reproduce.tune --modality image --tier cpu otca process_credit    rates and KL of these methods, 3 seeds each
    python -m reproduce.tune --modality image --tier cpu --winners              each method's best, and whether it lies at an edge

Every method gets the same grid, as multiples of the tier's values or, where it has them, of its own, and as many runs. The winner
has the highest hypervolume: the product of the mean training rewards. Held-out accuracy, which tables compare, is not tuned on.
A preset's file (otca/configs) holds winners under `tuned`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from baselines import find_method
from eval.evaluate import write_rows
from eval.markup import show
from eval.store import gather
from eval.tables import UNTRAINED
from otca import presets
from otca.errors import InputError
from otca.runs import RunSpec, is_finished
from reproduce.run import MAKING, make_runs, run_script, script
from reproduce.table import TABLES
from reproduce.workers import RUNS

TUNING_SEEDS = (101, 102, 103)
FACTORS = ["rate", "kl"]
GRID = ((0.5, 1.0), (1.0, 1.0), (2.0, 1.0), (1.0, 0.5), (1.0, 2.0))
"""Multiples of the learning rate and the KL weight that are tried for every method, one changed at a time."""
ITERATIONS = 30
PROMPTS = 120
"""Iterations of a run and validation prompts that it is judged on, fewer than a table's."""
COSTS = ["network_evaluations", "reward_calls", "train_seconds"]


def arms(modality: str, tier: str, methods: Sequence[str]) -> list[RunSpec]:
    """Every run of the grid, seed by seed."""
    place = f"{modality}/{tier}"
    return [
        RunSpec(modality, tier, method, seed, f"{rate:g}-{kl:g}", _settings(place, method, rate, kl))
        for seed in TUNING_SEEDS
        for method in methods
        for rate, kl in GRID
    ]


def _settings(place: str, method: str, rate: float, kl: float) -> tuple[tuple[str, object], ...]:
    """Settings of one point of the grid."""
    own = presets.preset(place) | find_method(method).settings
    scaled = {"optimizer.learning_rate": rate * own["optimizer.learning_rate"], "loss.kl_beta": kl * own["loss.kl_beta"]}
    return tuple(({"iterations": ITERATIONS, "validation.every": 0} | scaled).items())


def compared() -> list[str]:
    """Every method of Table 1 and of the rivals, without variants."""
    tables = (TABLES["table1"], TABLES["ablations/rivals"])
    return list(dict.fromkeys(name for table in tables for name in table.rows("cpu") if name != UNTRAINED and "@" not in name))


def rows_of(grid: list[RunSpec], root: Path) -> pd.DataFrame:
    """One row a finished run: method, seed, factors, means of the trained rewards on validation prompts, cost."""
    out = []
    for arm in (arm for arm in grid if is_finished(root / arm.path)):
        frames = gather(root / arm.path)
        run, names = frames["runs"].iloc[0], json.loads(frames["runs"]["config"][0])["rewards"]
        factors = dict(zip(FACTORS, map(float, arm.variant.split("-"))))
        out.append({"method": arm.method, "seed": arm.seed, **factors, **frames["items"][names].mean(), **run[COSTS]})
    return pd.DataFrame(out)


def winners(rows: pd.DataFrame) -> pd.DataFrame:
    """Each method's factors of the highest hypervolume (of equals the lowest), and whether one lies at the edge of the grid."""
    rewards = [name for name in rows if name not in ("method", "seed", *FACTORS, *COSTS)]
    volume = rows.groupby(["method", *FACTORS])[rewards].mean().prod(axis=1).rename("hypervolume").reset_index()
    best = volume.sort_values(["hypervolume", *FACTORS], ascending=[False, True, True], kind="stable").groupby("method").first()
    return best.assign(at_edge=((best[FACTORS] == rows[FACTORS].min()) | (best[FACTORS] == rows[FACTORS].max())).any(axis=1))


def main(argv: list[str] | None = None) -> int:
    """Make the grid below runs/tuning/, judged on the validation split, and write the rows of all finished runs."""
    parser = script("tune", __doc__, "--modality", "--tier", *MAKING)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="which methods (default: all that are compared)")
    parser.add_argument("--winners", action="store_true", help="run nothing, print each method's winner")
    return run_script(parser, _tune, argv)


def _tune(args: argparse.Namespace) -> int:
    path, place = Path("results/tuning") / f"{args.modality}-{args.tier}.csv", f"{args.modality}/{args.tier}"
    if not args.winners:
        presets.EVAL[place] = presets.EVAL[place] | {"source": f"embedded:{args.modality}/validation", "prompts": PROMPTS}
        grid, root = arms(args.modality, args.tier, args.methods or compared()), RUNS / "tuning"
        code = make_runs("tune", args.tier, grid, args, root)
        if code is not None:
            return code
        known = pd.read_csv(path) if path.is_file() else pd.DataFrame()
        rows = pd.concat([known, rows_of(grid, root)]).drop_duplicates(["method", "seed", *FACTORS], keep="last")
        write_rows(rows.sort_values(["method", *FACTORS, "seed"]), path)
    if not path.is_file():
        raise InputError(f"{path} is missing; make the grid first, without --winners")
    best = winners(pd.read_csv(path))
    shown = {"Method": list(best.index)} | {head: [f"{v:.4g}" for v in best[head]] for head in (*FACTORS, "hypervolume")}
    edges = ", ".join(best.index[best["at_edge"]]) or "none"
    show("Winners, in multiples of the tier's own values", shown, f"At the edge of the grid: {edges}. Rows: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
