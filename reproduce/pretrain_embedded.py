"""Pre-train the checkpoints that ship with the repo: `python -m reproduce.pretrain_embedded [--video] [--stage NAME]`.

Stages in order: `vae` (autoencoder), `flow` (rectified-flow transformer and text encoders), `distill` (classifier-free
guidance into one pass, as FLUX.1-dev), `judge` (held-out detector), `clip` (held-out open_clip model; images), `publish`
(copy into the package, write SHA-256). Everything is seeded and resumes from `runs/pretrain/<medium>/`; steps, seconds and
accuracies are in `otca/embedded/checkpoints/pretrain-<medium>.json`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reproduce.pretrain import image, video


def main() -> int:
    """Run one stage, or all in order; exit code 2 for a stage that the medium does not have."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.pretrain_embedded", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", action="store_true", help="the video checkpoints (default: the image ones)")
    parser.add_argument("--stage", default="all", help="what to train (default: all, in order)")
    parser.add_argument("--folder", type=Path, default=None, help="where states are kept (default: runs/pretrain/<medium>)")
    args = parser.parse_args()
    stages = video.STAGES if args.video else image.STAGES
    folder = args.folder or Path("runs/pretrain") / ("video" if args.video else "image")
    if args.stage not in ("all", *stages):
        print(f"pretrain_embedded: error: unknown stage {args.stage!r} (known: all, {', '.join(stages)})", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages if args.stage == "all" else (args.stage,):
        stages[stage](folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
