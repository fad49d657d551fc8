"""Copy finished runs into results/: `python -m reproduce.publish [--tier quick] [--medium image]`, then `--render` a table.

Rows and manifests are copied whole; of the media only the few that the sample grids show.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from eval.videos import read_video, write_mp4
from otca.errors import InputError
from otca.files import sha256, write_atomic
from otca.runs import RECORDED, is_finished
from reproduce.costs import publish_costs
from reproduce.figures import GRID_SEED, grid_files


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
    if run.name == f"seed{GRID_SEED}":
        shown = grid_files(run)
        (target / "media").mkdir(exist_ok=True)
        for row in shown:
            file = target / "media" / row["file"]
            shutil.copyfile(run / "media" / row["file"], file)
            if file.suffix == ".webp":
                clip = read_video(file)
                write_mp4(file.with_suffix(".mp4"), clip.frames_FCHW, clip.fps)
        write_atomic(target / "media" / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in shown))


def main(argv: list[str] | None = None) -> int:
    """Publish every finished run of a medium and tier."""
    parser = argparse.ArgumentParser(prog="python -m reproduce.publish", description=__doc__)
    parser.add_argument("--medium", default="image", help="medium to publish (default: image)")
    parser.add_argument("--tier", default="quick", help="tier to publish (default: quick)")
    args = parser.parse_args(argv)
    source = Path("runs") / args.medium / args.tier
    runs = [run for run in sorted(source.glob("*/seed*")) if is_finished(run)]
    if not runs:
        print(f"publish: error: no finished run below {source}; make them first", file=sys.stderr)
        return 2
    for run in runs:
        publish_run(run, Path("results") / run.relative_to("runs"))
    publish_costs(runs, Path("results") / args.medium / args.tier / "cost.csv")
    print(f"published {len(runs)} runs of {args.medium}/{args.tier}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
