"""What a tier's runs are and what they will take, before they are made: results/plans/<tier>.csv.

    python -m reproduce.tier_plan --tier cpu    plan every run of `reproduce.all`, from the costs of the tuning runs of that tier

A run's seconds of training are taken as linear in its network evaluations and its reward calls, as they were in the tuning runs
(results/tuning/<modality>-methods.csv), those of evaluation as the mean there.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from scipy.optimize import nnls

from baselines import find_method
from eval.evaluate import write_rows
from otca import presets
from otca.budget import evaluations_per_sample, scored_media
from otca.errors import InputError
from otca.models.base import build_policy
from otca.runs import RunSpec
from otca.signals import run_command
from reproduce.all import arms
from reproduce.runner import arm_config
from reproduce.tune import COSTS

FOLDER = Path("results/plans")


def seconds_each(costs: pd.DataFrame) -> tuple[float, float, float]:
    """Seconds of a network evaluation, of a reward call and of judging a run; ``costs``: measured runs, columns `COSTS`."""
    trained = costs[costs[COSTS[2]] > 0]
    evaluations, calls, training, judging = COSTS
    (evaluation, call), _ = nnls(trained[[evaluations, calls]].to_numpy(float), trained[training].to_numpy(float))
    return float(evaluation), float(call), float(costs[judging].mean())


def planned(arm: RunSpec, seeds: int, rates: tuple[float, float, float], forwards: int) -> dict[str, object]:
    """One row: settings, budget and seconds of a run of an arm, and hours of one core for all its seeds.

    ``forwards``: passes of the network for one velocity, 2 under guidance.
    """
    row: dict[str, object] = {"modality": arm.modality, "method": arm.name, "seeds": seeds}
    test = presets.eval_config(f"{arm.modality}/{arm.tier}")
    evaluations = calls = 0
    if arm.method != "base":
        config, method = arm_config(arm), find_method(arm.method)
        samples = config.prompts_per_iteration * config.group_size
        evaluations = config.iterations * samples * evaluations_per_sample(config, method) * forwards
        calls = config.iterations * samples * scored_media(config, method) * len(config.rewards)
        row |= {"iterations": config.iterations, "samples": samples, "steps": config.sampler.steps}
        row |= {"updates": config.optimizer.updates_per_iteration, "learning_rate": config.optimizer.learning_rate}
    row |= {"test_samples": test.prompts * test.samples_per_prompt, "network_evaluations": evaluations, "reward_calls": calls}
    minutes = (evaluations * rates[0] + calls * rates[1] + rates[2]) / 60
    return row | {"minutes": round(minutes, 2), "core_hours": round(seeds * minutes / 60, 3)}


def main(argv: list[str] | None = None) -> int:
    """Parse, plan, write, print; exit code 2 with one line where the costs are not measured."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.tier_plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=("quick", "cpu"), default="cpu", help="which tier (default: cpu)")
    args = parser.parse_args(argv)
    return run_command("tier_plan", lambda: _make(args.tier))


def _make(tier: str) -> None:
    wanted = arms(tier)
    seeds = Counter((arm.modality, arm.name) for arm in wanted)
    rates, forwards = {}, {}
    for modality in dict.fromkeys(arm.modality for arm in wanted):
        path = Path("results/tuning") / f"{modality}-methods.csv"
        if not path.is_file():
            raise InputError(
                f"{path} not found; make it with python -m reproduce.tune --grid methods --modality {modality} --tier {tier}"
            )
        rates[modality] = seconds_each(pd.read_csv(path))
        forwards[modality] = build_policy(presets.train_config(f"{modality}/{tier}", "base", {}, 0).policy).forwards_per_velocity
    firsts = {(arm.modality, arm.name): arm for arm in reversed(wanted)}
    rows = [planned(firsts[key], count, rates[key[0]], forwards[key[0]]) for key, count in seeds.items()]
    table = pd.DataFrame(rows)
    whole = ["iterations", "samples", "steps", "updates"]
    table[whole] = table[whole].astype("Int64")
    write_rows(table, FOLDER / f"{tier}.csv")
    hours = table.groupby("modality", sort=False)["core_hours"].sum()
    print(table.to_string(index=False, na_rep="–"))
    print(f"{len(wanted)} runs; core hours: {', '.join(f'{modality} {value:.1f}' for modality, value in hours.items())}")
    print(f"written: {FOLDER / f'{tier}.csv'}")


if __name__ == "__main__":
    sys.exit(main())
