"""Train and judge methods at a tier exactly as the published arms, with their seeds: a method of one's own, or any arm.

    python -m reproduce.method worst_first --tier cpu                      every seed of the tier, into runs/image/cpu/worst_first
    python -m reproduce.method otca otca_moca@rho0.1 --tier cpu --seeds 3  the first three seeds, of methods and variants
    python -m reproduce.compare runs/image/cpu/worst_first                 what it comes to, against published runs

A method is a file in baselines/ (README, "Add a method"), a variant a line in reproduce/variants.py; `name@equal` has as many
iterations as the network evaluations of static weighting pay for. The same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from otca.distributed import is_main
from otca.presets import SEEDS
from otca.signals import run_command
from reproduce.jobs import add_jobs, count_of, jobs_of
from reproduce.variants import named_arm


def main(argv: list[str] | None = None) -> int:
    """Parse, run, say where the runs are; exit code 2 with one line where something cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.method", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a method of baselines/, or method@variant")
    parser.add_argument("--modality", choices=("image", "video"), default="image", help="(default: image)")
    parser.add_argument("--tier", choices=tuple(SEEDS), default="quick", help="how large the runs are (default: quick)")
    parser.add_argument("--seeds", default="", metavar="N", help="so many seeds, from 0 (default: as the tier's headline arms)")
    add_jobs(parser)
    parser.add_argument("--dry-run", action="store_true", help="resolve settings, files, disk space and processes, and stop")
    parser.add_argument("--allow-trained-metric", action="store_true", help="let an arm train on a held-out metric")
    args = parser.parse_args(argv)
    return run_command("method", lambda: _make(args))


def _make(args: argparse.Namespace) -> int:
    from reproduce.dry_run import preflight
    from reproduce.runner import check_trained_arms, run_arms

    seeds, jobs, root = count_of("--seeds", args.seeds) or SEEDS[args.tier], jobs_of(args.jobs), Path("runs")
    arms = [named_arm(args.modality, args.tier, name, seed) for seed in range(seeds) for name in dict.fromkeys(args.names)]
    if not args.allow_trained_metric:
        check_trained_arms(arms)
    if args.dry_run:
        return preflight(", ".join(args.names), args.tier, arms, root)
    run_arms(arms, root, jobs)
    if is_main():
        for folder in dict.fromkeys((root / arm.path).parent for arm in arms):
            print(f"made: {folder} ({seeds} seeds); compare with: python -m reproduce.compare {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
