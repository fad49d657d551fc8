"""How far the ratio of new to old probability is from 1 before an update has moved anything: 0 where both passes round alike.

    python -m reproduce.first_ratio            measure on this machine, add its rows to results/precision/first_ratio.csv
    python -m reproduce.first_ratio --render   write the README's table from the published rows

One iteration of OTCA on each embedded model, whole and by LoRA, in fp32 and bf16; rows of other hardware are kept.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from eval.evaluate import write_rows
from eval.markup import markdown_table
from otca import presets
from otca.config import TrainConfig
from otca.errors import InputError
from otca.methods import METHODS
from otca.signals import run_command
from otca.trainer import Trainer
from reproduce.costs import hardware
from reproduce.readme import update_readme

ROWS = Path("results/precision/first_ratio.csv")
FP32 = "fp32"
SMALL = {"prompts_per_iteration": 2, "group_size": 8, "micro_batch": 8, "optimizer.updates_per_iteration": 1}


def deviation(modality: str, tuning: str, precision: str) -> float:
    """Largest |ratio − 1| over the samples and trained steps of the first update."""
    settings = {"method": "otca", "policy.tuning": tuning, "policy.precision": precision}
    config = TrainConfig.from_dotted(presets.preset(f"{modality}/quick") | SMALL | settings)
    with tempfile.TemporaryDirectory() as folder:
        return Trainer(config, METHODS["otca"], Path(folder)).step()["first_ratio_deviation"]


def measure() -> pd.DataFrame:
    """One row a modality, tuning and precision."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = list(itertools.product(("image", "video"), ("full", "lora"), ("no", "bf16")))
    # accelerate keeps the precision of its first training for as long as a process lives
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        rows = [(*case, device, found, hardware()) for case, found in zip(cases, pool.map(deviation, *zip(*cases)))]
    return pd.DataFrame(rows, columns=["modality", "tuning", "precision", "device", "largest_deviation", "hardware"])


def render() -> None:
    """The README's table."""
    if not ROWS.is_file():
        raise InputError(f"{ROWS} not found; make it with python -m reproduce.first_ratio")
    rows = pd.read_csv(ROWS)
    heads = {"Model": "modality", "Tuning": "tuning", "Precision": "precision", "On": "hardware"}
    grid = {head: [(FP32 if value == "no" else str(value), False) for value in rows[name]] for head, name in heads.items()}
    grid["Largest deviation of the ratio from 1"] = [(f"{value:.2g}", False) for value in rows["largest_deviation"]]
    update_readme("first-ratio", markdown_table(grid) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, write; exit code 2 with one line where nothing is published yet."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.first_ratio", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--render", action="store_true", help="only write the README's table from the published rows")
    args = parser.parse_args(argv)
    return run_command("first_ratio", lambda: _make(args.render))


def _make(render_alone: bool) -> None:
    if not render_alone:
        made = measure()
        former = pd.read_csv(ROWS) if ROWS.is_file() else made.iloc[:0]
        write_rows(pd.concat([former[~former["hardware"].isin(made["hardware"])], made]), ROWS)
        print(made.to_string(index=False))
    render()


if __name__ == "__main__":
    sys.exit(main())
