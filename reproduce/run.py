"""Runs: every method, variant and seed is trained and judged here, by one worker, several, or Slurm's.

    python -m reproduce.run worst_first --modality image --tier cpu        every seed of the tier, into runs/image/cpu/worst_first
    python -m reproduce.run otca otca_moca@rho0 --tier cpu --seeds 3       the first three seeds of methods and variants
    python -m reproduce.run otca --tier cpu --slurm PARTITION --jobs 40    as 40 jobs of Slurm, of one core (and --gpus N) each
    python -m reproduce.run otca --tier cpu --progress                     done, running, left

A method is a file in baselines/, a variant a line in reproduce/variants.yaml. Start the same command again to go on after a stop.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch

from eval.columns import METRICS
from eval.markup import number, show
from eval.store import COST, run_values
from otca.distributed import end_processes, is_main
from otca.errors import InputError
from otca.files import is_held
from otca.presets import SEEDS
from otca.runs import RunSpec, is_finished
from otca.signals import run_command
from reproduce.dry_run import preflight
from reproduce.one_run import check_trained_arms
from reproduce.variants import named_arm
from reproduce.workers import RUNS, iterations_of, run_arms


def positive(text: str) -> int:
    """A whole number above 0, of an option."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text[:20]}: give a whole number above 0, or leave it out")
    return int(text)


def _count(default: int | None, said: str) -> dict[str, object]:
    return {"type": positive, "default": default, "metavar": "N", "help": said}


CORES = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
OPTIONS: dict[str, dict[str, object]] = {
    "--modality": {"choices": ("image", "video"), "default": "image", "help": "which task (default: image)"},
    "--tier": {"choices": tuple(SEEDS), "default": "quick", "help": "how large the runs are (default: quick)"},
    "--jobs": _count(CORES, "workers (default: one a core; one with a GPU)"),
    "--slurm": {"default": "", "metavar": "PARTITION", "help": "submit the workers to this partition of Slurm"},
    "--gpus": _count(0, "with --slurm: GPUs of each job (default: none)"),
    "--dry-run": {"action": "store_true", "help": "resolve settings, files, disk space and processes, and stop"},
    "--progress": {"action": "store_true", "help": "print how far the runs are, and stop"},
    "--allow-trained-metric": {"action": "store_true", "help": "let a run train on a held-out metric"},
}
"""Options that scripts share."""
MAKING = ("--jobs", "--slurm", "--gpus", "--dry-run", "--progress", "--allow-trained-metric")
"""Those of whatever makes runs, which `make_runs` reads."""


def script(name: str, description: str | None, *shared: str) -> argparse.ArgumentParser:
    """The parser of ``python -m reproduce.<name>``, whose help starts with the module's text, with options of `OPTIONS`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"python -m reproduce.{name}", description=description, formatter_class=formatter)
    for option in shared:
        parser.add_argument(option, **OPTIONS[option])
    return parser


def run_script(parser: argparse.ArgumentParser, command: Callable[[argparse.Namespace], int | None], argv=None) -> int:
    """Parse and run ``command(args)``; exit code 2 with one line where something cannot be done."""
    args = parser.parse_args(argv)
    return run_command(parser.prog.rpartition(".")[2], lambda: command(args))


def make_runs(name: str, tier: str, arms: Sequence[RunSpec], args: argparse.Namespace, root: Path = RUNS) -> int | None:
    """What the options `MAKING` ask for; an exit code where that was not to make the runs."""
    if args.progress:
        show_progress(arms, root, args.jobs)
        return 0
    if args.gpus and not args.slurm:
        raise InputError(f"--gpus {args.gpus} goes with --slurm; local workers take this machine's GPU by themselves")
    if not args.allow_trained_metric:
        check_trained_arms(arms)
    if args.dry_run and not is_main():
        return 0
    if args.dry_run:
        code = preflight(name, tier, list(arms), root)
        show_progress(arms, root, args.jobs)
        return code
    missing = sum(not is_finished(root / arm.path) for arm in arms)
    if is_main():
        print(f"{name}, {tier} tier: {len(arms)} runs, {missing} to make; the same command goes on after a stop")
    run_arms(arms, root, args.jobs, args.slurm, args.gpus)
    return None


def show_progress(arms: Sequence[RunSpec], root: Path, jobs: int) -> None:
    """Print done, running, left and minutes left by modality and method; runs left cost what finished ones of the method did."""
    rows = []
    for arm in dict.fromkeys(arms):
        folder, (reached, total) = root / arm.path, iterations_of(arm, root)
        done, cost = is_finished(folder), folder / COST
        spent = json.loads(cost.read_text()) if done and cost.is_file() else {}
        seconds = sum(spent.get(f"{part}_seconds", 0.0) for part in ("train", "evaluate")) if spent else None
        rows.append((arm.modality, arm.name, done, not done and is_held(folder), seconds, 1 - reached / total))
    table = pd.DataFrame(rows, columns=["modality", "method", "done", "running", "seconds", "to_do"])
    typical = table.groupby(["modality", "method"])["seconds"].transform("mean")
    trained = table[table["method"] != "base"].groupby("modality")["seconds"].mean()
    table["minutes left"] = table["to_do"] * typical.fillna(table["modality"].map(trained)).astype(float) / 60
    table["left"] = ~table["done"] & ~table["running"]
    counted = ["done", "running", "left", "minutes left"]
    sums = table.groupby(["modality", "method"], sort=False)[counted].sum(min_count=1).reset_index()
    total, known = sums[counted].sum(), sums["minutes left"].notna().all()
    hours = f"{total['minutes left'] / 60 / jobs:.1f} hours with {jobs} workers" if known else "unknown as yet"
    cells = {name: [f"{value:.0f}".replace("nan", "?") for value in sums[name].astype(float)] for name in counted}
    said = f"{total['done']:.0f} done, {total['running']:.0f} running, {total['left']:.0f} left; time left: {hours}"
    show("Runs", {"method": list(sums["method"]), "modality": list(sums["modality"])} | cells, said)


def show_made(arms: Sequence[RunSpec], root: Path) -> None:
    """Print what finished runs came to: one row a method, means over its seeds on test prompts."""
    values = pd.DataFrame([{"method": arm.name, "seeds": 1} | run_values(root / arm.path) for arm in arms])
    trained = [name for name in METRICS if not METRICS[name].held_out]
    shown = [name for name in ("accuracy", *trained, "hacking_gap") if name in values]
    by_method = values.groupby("method", sort=False)
    means, seeds = by_method[shown].mean(), by_method["seeds"].sum()
    grid = {"Method": list(means.index), "Seeds": [str(n) for n in seeds]}
    grid |= {METRICS[name].label: [number(value, METRICS[name].decimals) for value in means[name]] for name in shown}
    folders = " ".join(dict.fromkeys(str((root / arm.path).parent) for arm in arms))
    show("Means over seeds, test prompts", grid, f"differences with intervals: python -m reproduce.compare {folders}")


def main(argv: list[str] | None = None) -> int:
    parser = script("run", __doc__, "--modality", "--tier", *MAKING)
    parser.add_argument("names", nargs="+", metavar="NAME", help="a method of baselines/, or method@variant")
    parser.add_argument("--seeds", **_count(None, "so many seeds, from 0 (default: as the tier's headline methods)"))
    return run_script(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    names, seeds = dict.fromkeys(args.names), args.seeds or SEEDS[args.tier]
    arms = [named_arm(args.modality, args.tier, name, seed) for seed in range(seeds) for name in names]
    code = make_runs(", ".join(names), args.tier, arms, args)
    if code is None and is_main():
        show_made(arms, RUNS)
    end_processes()
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
