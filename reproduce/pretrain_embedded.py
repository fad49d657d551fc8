"""Pre-train the checkpoints that ship with the repo: `python -m reproduce.pretrain_embedded [--stage vae|flow|judge|clip|publish|all]`.

Stages in order: `vae` (AutoencoderKL), `flow` (rectified-flow transformer and text encoders), `judge` (held-out detector),
`clip` (held-out open_clip model), `publish` (copy into the package, write SHA-256). Everything is seeded and resumes from
`runs/pretrain/image/`; costs are in `reproduce/README.md`. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

STAGES = ("vae", "flow", "judge", "clip", "publish")
VAE_STEPS = 8000
FLOW_STEPS = 12000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to train (default: all, in order)")
    parser.add_argument("--folder", type=Path, default=Path("runs/pretrain/image"), help="where states are kept")
    args = parser.parse_args()
    for stage in STAGES if args.stage == "all" else (args.stage,):
        globals()[f"run_{stage}"](args.folder)


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
    pretrain_flow(vae, folder, FLOW_STEPS).save_pretrained(folder / "pipeline")


if __name__ == "__main__":
    main()
