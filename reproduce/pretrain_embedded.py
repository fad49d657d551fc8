"""Pre-train the checkpoints that ship with the repo: `python -m reproduce.pretrain_embedded --modality image|video`.

Stages: `vae` (autoencoder); then side by side, one thread each, `flow` (rectified-flow transformer and text encoders), and
`judge` (held-out detector) and, of images, `clip` (held-out open_clip model); then `publish` (copy into the package, write
SHA-256). Everything is seeded and resumes from `runs/pretrain/<modality>/`; steps, seconds and what the base model can do are
in `otca/embedded/checkpoints/pretrain-<modality>.json`. The video judge starts from the image judge. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from reproduce.pretrain.stages import MODALITIES, Modality


def main() -> int:
    """Run one stage, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.pretrain_embedded", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modality", default="image", choices=MODALITIES, help="which task (default: image)")
    stages = dict.fromkeys(stage for modality in MODALITIES.values() for stage in modality.stages)
    parser.add_argument("--stage", default="all", choices=("all", *stages), help="what to train (default: all)")
    parser.add_argument("--folder", type=Path, help="where states are kept (default: runs/pretrain/<modality>)")
    args = parser.parse_args()
    modality, folder = MODALITIES[args.modality], args.folder or Path("runs/pretrain") / args.modality
    if args.stage not in ("all", *modality.stages):
        parser.error(f"--stage {args.stage}: {args.modality} has {', '.join(modality.stages)}")
    folder.mkdir(parents=True, exist_ok=True)
    if args.stage == "all":
        command = [sys.executable, "-m", "reproduce.pretrain_embedded", "--modality", args.modality, "--folder", str(folder)]
        return run_all(modality, [*command, "--stage"], folder)
    modality.stages[args.stage](folder)
    return 0


def run_all(modality: Modality, command: list[str], folder: Path) -> int:
    """`vae`, then the branches side by side, then `publish`; or the exit code of the first stage that fails.

    A stage of a branch is the process ``command`` + its name, with one thread; a failure stops the other branches.
    """
    modality.stages["vae"](folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    waiting = [list(branch) for branch in modality.branches]
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
    modality.stages["publish"](folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
