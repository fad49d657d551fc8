"""Choose a tier's settings on tuning seeds and the validation split, which no table uses → results/tuning/.

    python -m reproduce.tune --tier quick           learning rate × updates an iteration, static weighting: image-quick.csv
    python -m reproduce.tune --grid regimes         batch, noise, trained steps, weights of objectives and methods, in longer
                                                    runs of the image task: image-regimes.csv
    python -m reproduce.tune --grid methods --tier cpu  the same learning rates for every method: image-methods.csv

One row a run: its settings, its seed, means of rewards and held-out accuracy. Of the first two all arms of a table share what is
chosen; of the last each method has its own, from equal budgets: `--winners` prints what `presets.TUNED` then holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from eval.evaluate import write_rows
from otca import presets
from otca.runs import RunSpec, is_finished
from otca.signals import run_command
from reproduce.costs import COST
from reproduce.jobs import add_jobs, jobs_of
from reproduce.runner import run_arms

Settings = dict[str, object]
Evaluation = dict[str, object]

ROW = ("method", "seed", "variant", "settings")
HELD_OUT = "judge_correct"
COSTS = ("network_evaluations", "reward_calls", "train_seconds", "evaluate_seconds")

RATES = {
    f"lr{rate:g}-updates{updates}": {"optimizer.learning_rate": rate, "optimizer.updates_per_iteration": updates}
    for updates in (1, 2)
    for rate in (1.5e-4, 3e-4)
}
SMALL: Settings = {
    "iterations": 200,
    "group_size": 8,
    "sampler.level": 0.7,
    "optimizer.learning_rate": 1e-4,
    "optimizer.updates_per_iteration": 2,
}
"""64 samples an iteration, two updates."""
LARGE: Settings = {
    "iterations": 60,
    "group_size": 16,
    "sampler.level": 0.9,
    "optimizer.learning_rate": 1.5e-4,
    "optimizer.updates_per_iteration": 1,
}
"""128 samples an iteration, one update, more noise."""
ALIGNED: Settings = {"reward_weights": [4.0, 1.0, 1.0]}


def _first(steps: int) -> Settings:
    return {"step_selection.kind": "first_k", "step_selection.count": steps}


REGIMES: dict[str, tuple[Settings, str]] = {
    "small-first2": (SMALL | _first(2), "static_multi_reward otca_moca process_credit moca_step"),
    "small-first2-aligned": (SMALL | _first(2) | ALIGNED, "static_multi_reward"),
    "large-first2": (LARGE | _first(2), "static_multi_reward"),
    "large-first2-aligned": (LARGE | _first(2) | ALIGNED, "static_multi_reward"),
    "large-first3": (LARGE | _first(3), "static_multi_reward"),
    "large": (LARGE, "uniform_grpo static_multi_reward otca otca_moca process_credit process_moca"),
    "large-step": (LARGE | {"credit.process_scale": "step"}, "process_credit process_moca"),
    "large-step-decay1": (LARGE | {"credit.process_scale": "step", "credit.process_decay": 1.0}, "process_credit process_moca"),
}
"""Variant → what it changes of the tier, and the methods that are tried on it."""


FACTORS = {"image": (0.5, 1.0, 2.0), "video": (0.25, 0.5, 1.0, 2.0)}
"""Learning rates that are tried for every method of a modality, as multiples of the tier's.

Videos began with the same three; the lowest was the best of the first methods, so all of them have a lower one beside it.
"""
CORE = ("uniform_grpo", "static_multi_reward", "otca_tcd", "otca_moca", "otca", "process_credit")
RIVALS = (
    *("flow_grpo", "dance_grpo", "mix_grpo", "tempflow_grpo", "flow_grpo_fast", "grpo_guard", "gdpo", "coca", "dense_grpo"),
    *("diffusion_nft", "moca_step"),
)
METHODS = {"video": CORE, "image": CORE + RIVALS}
"""Methods that are tuned; variants take what was chosen for their method."""


def _methods(modality: str, tier: str) -> list[RunSpec]:
    rate = float(presets.preset(f"{modality}/{tier}")["optimizer.learning_rate"])
    return [
        RunSpec(modality, tier, method, 101, f"lr×{factor:g}", (("optimizer.learning_rate", rate * factor),))
        for method in METHODS[modality]
        for factor in FACTORS[modality]
    ]


def winners(rows: pd.DataFrame) -> dict[str, float]:
    """Method → its learning rate of the highest hypervolume; of equals the lowest rate.

    The hypervolume is the product of the mean training rewards on validation prompts: held-out accuracy, which tables compare,
    is not tuned on, and a method that pays for one objective with another gains little.
    """
    rewards = [name for name in rows.columns if name not in (*ROW, HELD_OUT, *COSTS)]
    rate = rows["settings"].map(lambda text: json.loads(text).get("optimizer.learning_rate"))
    means = rows.assign(rate=rate).dropna(subset="rate").groupby(["method", "rate"])[rewards].mean().prod(axis=1)
    return {method: float(of.droplevel(0).idxmax()) for method, of in means.groupby(level=0)}


def _rates(modality: str, tier: str) -> list[RunSpec]:
    return [RunSpec(modality, tier, "static_multi_reward", 101, name, tuple(given.items())) for name, given in RATES.items()]


def _regimes(modality: str, tier: str) -> list[RunSpec]:
    return [
        RunSpec(modality, tier, method, seed, name, tuple(given.items()))
        for seed in (103, 101)
        for name, (given, methods) in REGIMES.items()
        for method in methods.split()
    ]


GRIDS: dict[str, tuple[Callable[[str, str], list[RunSpec]], Evaluation]] = {
    "rates": (_rates, {"prompts": 600, "samples_per_prompt": 3}),
    "regimes": (_regimes, {"prompts": 600, "samples_per_prompt": 3}),
    "methods": (_methods, {}),
}
"""Name → the arms, and what it changes of the evaluation."""


def arms(modality: str, tier: str, grid: str) -> list[RunSpec]:
    """The arms of a grid, and the untrained model on each of its seeds."""
    trained = GRIDS[grid][0](modality, tier)
    return [*(RunSpec(modality, tier, "base", seed) for seed in dict.fromkeys(arm.seed for arm in trained)), *trained]


def read_run(folder: Path, arm: RunSpec) -> dict[str, object]:
    """One row: method, seed, the settings that it changes as JSON, means over the validation items, and what the run cost."""
    items = pd.read_csv(folder / "scores.csv.gz")
    names = presets.train_config(f"{arm.modality}/{arm.tier}", "base", {}, arm.seed).rewards
    means = items[[*names, HELD_OUT]].mean().to_dict()
    spent = json.loads((folder / "manifest.json").read_text())["budget"] | json.loads((folder / COST).read_text())
    row = dict(zip(ROW, (arm.method, arm.seed, arm.variant, json.dumps(dict(arm.settings)))))
    return row | means | {name: spent[name] for name in COSTS}


def main(argv: list[str] | None = None) -> int:
    """Run the grid below runs/tuning/ on the validation split and write the rows of all finished runs."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modality", default="image", help="modality (default: image)")
    parser.add_argument("--tier", default="quick", help="tier whose settings to tune (default: quick)")
    parser.add_argument("--grid", choices=tuple(GRIDS), default="rates", help="what to vary (default: rates)")
    add_jobs(parser)
    parser.add_argument("--collect", action="store_true", help="run nothing, write the rows of what is finished")
    parser.add_argument("--winners", action="store_true", help="run nothing, print each method's learning rate")
    args = parser.parse_args(argv)
    return run_command("tune", lambda: _make(args))


def _make(args: argparse.Namespace) -> None:
    jobs, suffix = jobs_of(args.jobs), args.tier if args.grid == "rates" else args.grid
    path = Path("results/tuning") / f"{args.modality}-{suffix}.csv"
    if args.winners:
        print("\n".join(f"{method}: {rate:g}" for method, rate in winners(pd.read_csv(path)).items()))
        return
    name = f"{args.modality}/{args.tier}"
    presets.EVAL[name] = presets.EVAL[name] | {"source": f"embedded:{args.modality}/validation"} | GRIDS[args.grid][1]
    root = Path("runs/tuning") / args.grid
    grid = arms(args.modality, args.tier, args.grid)
    if not args.collect:
        run_arms(grid, root, jobs)
    rows = pd.DataFrame([read_run(root / arm.path, arm) for arm in grid if is_finished(root / arm.path)])
    write_rows(rows, path)
    print(rows.drop(columns=["settings"]).groupby(["method", "variant"]).mean().to_string(float_format="%.4f"))


if __name__ == "__main__":
    sys.exit(main())
