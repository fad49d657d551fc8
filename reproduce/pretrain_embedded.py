"""Pre-train the checkpoints that ship with the repo: `python -m reproduce.pretrain_embedded [--stage NAME]`.

Stages in order: `vae` (AutoencoderKL), `flow` (rectified-flow transformer and text encoders), `judge` (held-out detector),
`clip` (held-out open_clip model), `publish` (copy into the package, write SHA-256). Everything is seeded and resumes from
`runs/pretrain/image/`; steps and seconds are in `otca/embedded/checkpoints/pretrain.json`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

from otca.embedded.architecture import MAX_SEQUENCE_LENGTH
from otca.files import EMBEDDED, write_atomic, write_hashes

STAGES = ("vae", "flow", "judge", "clip", "publish")
VAE_STEPS = 8000
FLOW_STEPS, FLOW_DECAY_FROM = 13500, 9500
JUDGE_STEPS = 3000
CLIP_STEPS = 3000
TRUE_GUIDANCE = 2.5
"""Classifier-free guidance that the checkpoint records for its use (results/embedded/ has what it buys)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to train (default: all, in order)")
    parser.add_argument("--folder", type=Path, default=Path("runs/pretrain/image"), help="where states are kept")
    args = parser.parse_args()
    for stage in STAGES if args.stage == "all" else (args.stage,):
        {"vae": run_vae, "flow": run_flow, "judge": run_judge, "clip": run_clip, "publish": run_publish}[stage](args.folder)


def run_vae(folder: Path) -> None:
    """Train the autoencoder and save it as `folder/vae/`."""
    from reproduce.pretrain.vae import peak_signal_to_noise, pretrain_vae

    vae = pretrain_vae(folder, VAE_STEPS)
    vae.save_pretrained(folder / "vae")
    print(f"vae: {peak_signal_to_noise(vae):.2f} dB on fresh scenes")


def run_flow(folder: Path) -> None:
    """Train transformer and text encoders on the autoencoder's latents and save `folder/pipeline/`."""
    from diffusers import AutoencoderKL

    from reproduce.pretrain.flow import pretrain_flow

    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    pretrain_flow(vae, folder, FLOW_STEPS, FLOW_DECAY_FROM).save_pretrained(folder / "pipeline")


def run_judge(folder: Path) -> None:
    """Train the held-out judge, half of its images through the autoencoder, and save `folder/judge/`."""
    from diffusers import AutoencoderKL

    from reproduce.pretrain.judge import KINDS, judge_accuracy, pretrain_judge

    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    judge = pretrain_judge(folder, JUDGE_STEPS, vae)
    judge.save_pretrained(folder / "judge")
    for kind in KINDS:
        print(f"judge, {kind}: {judge_accuracy(judge, 1200, kind, vae)}")


def run_clip(folder: Path) -> None:
    """Train the held-out open_clip model and save `folder/clip/`."""
    from diffusers import AutoencoderKL

    from reproduce.pretrain.clip import pretrain_clip, retrieval_accuracy

    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    clip = pretrain_clip(folder, CLIP_STEPS, vae)
    clip.save_pretrained(folder / "clip")
    print(f"clip: {retrieval_accuracy(clip, 1024, vae)}")


def run_publish(folder: Path) -> None:
    """Copy what ships into the package; record its SHA-256, and steps and seconds of each stage in `pretrain.json`."""
    notes = {"max_sequence_length": MAX_SEQUENCE_LENGTH, "true_guidance": TRUE_GUIDANCE}
    write_atomic(folder / "pipeline" / "otca.json", json.dumps(notes) + "\n")
    for source, name in (("pipeline", "image"), ("judge", "judge"), ("clip", "clip")):
        target = EMBEDDED / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder / source, target)
        write_hashes(target)
        print(f"published {target} ({sum(p.stat().st_size for p in target.rglob('*') if p.is_file()) / 1e6:.2f} MB)")
    states = {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in STAGES if name != "publish"}
    record = {name: {"steps": state["done"], "seconds": round(state["elapsed"])} for name, state in states.items()}
    write_atomic(EMBEDDED / "pretrain.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
