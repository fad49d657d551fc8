"""Copy finished runs into results/: `python -m reproduce.publish [--tier quick] [--modality image]`, then `--render` a table.

Rows and manifests are copied whole; of the media only the few that sample grids show, and none of the variants that only tables
without grids have. `--restore` copies the other way: what is published counts as made, so that a command over a whole
tier makes only what is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

from eval.media import read_video
from eval.videos import write_mp4
from otca.errors import InputError
from otca.files import sha256, write_atomic
from otca.runs import RECORDED, integrity_errors, is_finished
from otca.signals import run_command
from reproduce.all import TABLES
from reproduce.costs import COLUMNS, COST, publish_costs
from reproduce.figures import GRID_SEED, grid_files
from reproduce.table import MOST_CURVES


def has_samples(method: str) -> bool:
    """Whether samples of a method are published: of all but the variants that no table with a grid of samples has."""
    tables = [table for table in TABLES if table.figures and len(table.rows("cpu")) <= MOST_CURVES]
    return "@" not in method or any(method in table.rows("cpu") for table in tables)


def publish_run(run: Path, target: Path) -> None:
    """Copy one finished run's rows, config and manifest; refuse rows that do not match their manifest."""
    manifest = json.loads((run / "manifest.json").read_text())
    for name, expected in manifest["files"].items():
        if sha256(run / name) != expected:
            raise InputError(f"{run / name} does not match its manifest; delete the run folder and reproduce it")
    target.mkdir(parents=True, exist_ok=True)
    for name in (*RECORDED, "manifest.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, target / name)
    if run.name == f"seed{GRID_SEED}" and has_samples(run.parent.name):
        shown = grid_files(run)
        (target / "media").mkdir(exist_ok=True)
        for row in shown:
            file = target / "media" / row["file"]
            shutil.copyfile(run / "media" / row["file"], file)
            if file.suffix == ".webp":
                clip = read_video(file)
                write_mp4(file.with_suffix(".mp4"), clip.frames_FCHW, clip.fps)
        write_atomic(target / "media" / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in shown))


def restore_runs(modality: str, tier: str) -> int:
    """Copy the published runs of a modality and tier to where runs/ lacks them, with what they cost; returns how many.

    Raises InputError where nothing is published there, and on a damaged run.
    """
    published, count = Path("results") / modality / tier, 0
    costs = pd.read_csv(published / "cost.csv") if (published / "cost.csv").is_file() else pd.DataFrame(columns=COLUMNS)
    if costs.empty:
        raise InputError(f"nothing is published below {published}; take another --modality or --tier")
    for row in costs.to_dict("records"):
        source = published / row["method"] / f"seed{row['seed']}"
        target = Path("runs") / source.relative_to("results")
        if target.exists():
            continue
        broken = integrity_errors(source)
        if broken:
            raise InputError(f"run {source} cannot be restored: {broken[0]}")
        aside = target.with_name(f"{target.name}.part")
        shutil.rmtree(aside, ignore_errors=True)  # of a restore that was cut off
        shutil.copytree(source, aside)
        write_atomic(aside / COST, json.dumps({name: row[name] for name in COLUMNS[2:]}) + "\n")
        aside.rename(target)
        count += 1
    return count


def main(argv: list[str] | None = None) -> int:
    """Publish every finished run of a modality and tier, or restore the published ones; exit code 2 with one line on failure."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modality", default="image", help="image or video (default: image)")
    parser.add_argument("--tier", default="quick", help="how large the runs were (default: quick)")
    parser.add_argument("--restore", action="store_true", help="copy from results/ to runs/, where runs/ lacks the run")
    args = parser.parse_args(argv)
    return run_command("publish", lambda: _make(args))


def _make(args: argparse.Namespace) -> None:
    place = f"{args.modality}/{args.tier}"
    if args.restore:
        print(f"restored {restore_runs(args.modality, args.tier)} runs of {place}")
        return
    source = Path("runs") / place
    runs = [run for run in sorted(source.glob("*/seed*")) if is_finished(run)]
    if not runs:
        raise InputError(f"no finished run below {source}; make them first")
    for run in runs:
        publish_run(run, Path("results") / run.relative_to("runs"))
    publish_costs(runs, Path("results") / place / "cost.csv")
    print(f"published {len(runs)} runs of {place}")


if __name__ == "__main__":
    sys.exit(main())
