"""Table 1 (image): base, uniform GRPO, static multi-reward GRPO, TCD only, MOCA only, OTCA.

    python -m reproduce.table1 --tier quick            train what is missing into runs/, evaluate, write runs/table1/quick/
    python -m reproduce.table1 --tier quick --render   rebuild results/table1/quick/ from the published rows alone

Arms share prompts, initial noise, seeds, reward calls and network evaluations. Deviations from the paper: README.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.tables import EQUAL_CALLS, build_table, clear_winners, collect, write_table
from otca.errors import InputError, RewardError
from otca.presets import SEEDS
from otca.runs import Arm
from reproduce.figures import draw_figures
from reproduce.readme import update_readme

METHODS = ("base", "uniform_grpo", "static_multi_reward", "otca_tcd", "otca_moca", "otca")
MEDIUM = "image"


def arms(tier: str) -> list[Arm]:
    """Every run of the table, seed by seed, so that an interrupted table has whole seeds."""
    return [Arm(MEDIUM, tier, method, seed) for seed in range(SEEDS[tier]) for method in METHODS]


def write(rows_root: Path, tier: str) -> Path:
    """Table, curves and sample grid from the rows below ``rows_root``; returns the folder written."""
    folder = rows_root / "table1" / tier
    rows = collect(rows_root, MEDIUM, tier, METHODS)
    table = build_table(rows, medium=MEDIUM)
    write_table(table, folder, f"Table 1 (image, {tier} tier)", notes(tier), clear_winners(rows, EQUAL_CALLS))
    return folder


def notes(tier: str) -> list[str]:
    """What a reader must know beside the numbers."""
    seeds = SEEDS[tier]
    out = [
        f"{seeds} seeds an arm; a seed fixes training prompts, all noise, and evaluation noise, the same in every arm.",
        "Trained objectives: alignment, quality, aesthetic. All other columns are held out: no reward sees the judge, the "
        "CLIP model or the test prompts.",
        "Embedded task: the numbers are this repository's own, not the paper's.",
    ]
    if seeds < 5:
        out.insert(
            1,
            f"{seeds} seeds can show that training works and which objectives move; they cannot rank methods: intervals of "
            f"differences are wide, and a sign-flip test cannot fall below p = {2 / 2**seeds:g}.",
        )
    return out


def main(argv: list[str] | None = None) -> int:
    """Parse, run, print; exit code 2 with one line where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.table1", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=tuple(SEEDS), default="quick", help="how large the runs are (default: quick)")
    parser.add_argument("--render", action="store_true", help="only rebuild the published table from published rows")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side (default: one a core; one with a GPU)")
    args = parser.parse_args(argv)
    try:
        folder = render(args.tier) if args.render else reproduce(args.tier, args.jobs)
    except (InputError, RewardError, FileNotFoundError) as error:
        print(f"table1: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print((folder / "table.md").read_text())
    print(f"written: {folder}")
    return 0


def render(tier: str) -> Path:
    """Published rows → published table, figures and README block."""
    folder = write(Path("results"), tier)
    draw_figures(Path("results"), MEDIUM, tier, METHODS, folder)
    update_readme(f"table1-{tier}", folder / "table.md")
    return folder


def reproduce(tier: str, jobs: int) -> Path:
    """Train and evaluate what is missing below runs/, then write the table there."""
    from reproduce.runner import default_jobs, run_arms

    root = Path("runs")
    run_arms(arms(tier), root, jobs or default_jobs())
    folder = write(root, tier)
    draw_figures(root, MEDIUM, tier, METHODS, folder)
    return folder


if __name__ == "__main__":
    sys.exit(main())
