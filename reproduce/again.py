"""Do published runs come out again with the code as it is? `python -m reproduce.again` → results/reliability/again.csv.

    python -m reproduce.again                                   seed 0 of four headline methods: images, cpu tier
    python -m reproduce.again --modality video --methods otca     other runs; their rows are added to those that are there

A manifest fixes settings, rows, protocol and libraries; at most it names the commit of the code. So runs are trained and judged
anew in a folder aside, and their rows compared with the published ones: on the same kind of processor they should be the same bit
for bit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from eval.evaluate import write_rows
from otca.errors import InputError
from otca.files import sha256
from otca.signals import run_command
from reproduce.costs import hardware

OUT = Path("results/reliability/again.csv")
FILES = ("train.csv", "scores.csv.gz", "sets.csv")
KEYS = ["modality", "tier", "method", "seed", "file"]
COLUMNS = [*KEYS, "same", "largest_difference", "published_on", "hardware"]


def largest_difference(published: pd.DataFrame, made: pd.DataFrame) -> float:
    """Largest absolute difference of two tables' numbers, 0 where they are the same; infinite where anything else differs."""
    if list(published) != list(made) or len(published) != len(made):
        return float("inf")
    numbers = published.select_dtypes("number").columns.intersection(made.select_dtypes("number").columns)
    if not published.drop(columns=numbers).equals(made.drop(columns=numbers)):
        return float("inf")
    a, b = (frame[numbers].to_numpy(float) for frame in (published, made))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    return float(np.nanmax(np.abs(a - b), initial=0.0))


def compare_run(published: Path, made: Path) -> list[tuple[str, bool, float]]:
    """(file, whether it is the same byte for byte, largest difference) of each file of rows that was published."""
    out = []
    for name in FILES:
        if (published / name).is_file():
            difference = largest_difference(pd.read_csv(published / name), pd.read_csv(made / name))
            out.append((name, sha256(published / name) == sha256(made / name), difference))
    return out


def make_again(modality: str, tier: str, name: str, seed: int) -> pd.DataFrame:
    """Train and judge one published run anew; one row a file (`COLUMNS`). Raises InputError where it is not published."""
    from reproduce.runner import run_arm
    from reproduce.variants import named_arm

    arm, root = named_arm(modality, tier, name, seed), Path("results")
    published = root / arm.path
    if not (published / "manifest.json").is_file():
        raise InputError(f"no run is published at {published}; take another --modality, --tier, --methods or --seed")
    cost = pd.read_csv(root / modality / tier / "cost.csv").set_index(["method", "seed"])
    with tempfile.TemporaryDirectory() as folder:
        run_arm(arm, Path(folder))
        compared = compare_run(published, Path(folder) / arm.path)
    rows = [(modality, tier, name, seed, *row, cost["hardware"][name, seed], hardware()) for row in compared]
    return pd.DataFrame(rows, columns=COLUMNS)


def main(argv: list[str] | None = None) -> int:
    """Make runs again and write what was compared; exit code 1 where a file differs, 2 with one line where it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.again", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modality", default="image", help="image or video (default: image)")
    parser.add_argument("--tier", default="cpu", help="tier of the published runs (default: cpu)")
    parser.add_argument("--methods", default="static_multi_reward,uniform_grpo,otca,process_credit", help="separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="seed of the published runs (default: 0)")
    args = parser.parse_args(argv)
    return run_command("again", lambda: _make(args))


def _make(args: argparse.Namespace) -> int:
    same = True
    for name in args.methods.split(","):
        rows = make_again(args.modality, args.tier, name, args.seed)
        same &= bool(rows["same"].all())
        print(rows.drop(columns=["published_on", "hardware"]).to_string(index=False), flush=True)
        before = pd.read_csv(OUT) if OUT.is_file() else pd.DataFrame(columns=COLUMNS)
        kept = before[~before[KEYS].apply(tuple, axis=1).isin(list(rows[KEYS].itertuples(index=False, name=None)))]
        write_rows(pd.concat([kept, rows]) if len(kept) else rows, OUT)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
