"""Pre-train the checkpoints that ship with the repo: `python -m reproduce.pretrain_embedded [--video] [--stage NAME]`.

Stages: `vae` (autoencoder); then side by side, one thread each, `flow` (rectified-flow transformer and text encoders) and, for
images, `distill` (classifier-free guidance into one pass, as FLUX.1-dev), and `judge` (held-out detector) and, for images,
`clip` (held-out open_clip model); then `publish` (copy into the package, write SHA-256). Everything is seeded and resumes from
`runs/pretrain/<modality>/`; steps, seconds and accuracies are in `otca/embedded/checkpoints/pretrain-<modality>.json`. Nothing
is downloaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from reproduce.pretrain import image, video


def main() -> int:
    """Run one stage, or all; exit code 2 for a stage that the modality does not have."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.pretrain_embedded", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--video", action="store_true", help="the video checkpoints (default: the image ones)")
    parser.add_argument("--stage", default="all", help="what to train (default: all)")
    parser.add_argument("--folder", type=Path, default=None, help="where states are kept (default: runs/pretrain/<modality>)")
    args = parser.parse_args()
    modality = video if args.video else image
    folder = args.folder or Path("runs/pretrain") / ("video" if args.video else "image")
    if args.stage not in ("all", *modality.STAGES):
        print(
            f"pretrain_embedded: error: unknown stage {args.stage!r} (known: all, {', '.join(modality.STAGES)})", file=sys.stderr
        )
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    if args.stage == "all":
        own = [sys.executable, "-m", "reproduce.pretrain_embedded", *["--video"] * args.video, "--folder", str(folder), "--stage"]
        return run_all(modality, own, folder)
    modality.STAGES[args.stage](folder)
    return 0


def run_all(modality, command: list[str], folder: Path) -> int:
    """`vae`, then the branches side by side, then `publish`; or the exit code of the first stage that fails.

    A stage of a branch is the process ``command`` + its name, with one thread; a failure stops the other branches.
    """
    modality.STAGES["vae"](folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    waiting = [list(branch) for branch in modality.BRANCHES]
    running: list[subprocess.Popen | None] = [None] * len(waiting)
    while any(waiting) or any(running):
        for index, branch in enumerate(waiting):
            if running[index] is None and branch:
                running[index] = subprocess.Popen([*command, branch.pop(0)], env=environment)
        for index, process in enumerate(running):
            if process is None:
                continue
            try:
                code = process.wait(timeout=1)
            except subprocess.TimeoutExpired:
                continue
            running[index] = None
            if code:
                for other in filter(None, running):
                    other.terminate()
                return code
    modality.STAGES["publish"](folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
