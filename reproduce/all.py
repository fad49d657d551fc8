"""Everything at one tier: Tables 1 to 4 and the ablations.

    python -m reproduce.all --tier cpu                local workers, one a core; start it again to go on
    python -m reproduce.all --tier cpu --slurm PARTITION --jobs 40 [--gpus 1]
    python -m reproduce.all --tier cpu --progress     done, running, left, and the time left
    python -m reproduce.all --render                  rebuild every published table, figure and the page from published rows

Each table's own script makes the same runs; this one makes them all first, then writes the tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from eval.page import write_page
from otca.presets import SEEDS
from reproduce import credit_fidelity, gradient_signal
from reproduce.front_page import write_front_page
from reproduce.run import run_script
from reproduce.table import RESULTS, TABLES, parser_of, run_tables

README = Path("README.md")


def render() -> list[Path]:
    """Published rows → every published table and figure, the page and the README's headline; returns what was written."""
    written = [table.write(RESULTS, tier) for table in TABLES.values() for tier in SEEDS]
    for modality in ("image", "video"):
        if credit_fidelity.truth_file(modality, "base").is_file():
            credit_fidelity.render(modality)
    if (gradient_signal.FOLDER / gradient_signal.PRODUCTS).is_file():
        gradient_signal.render()
    write_front_page(README, RESULTS)
    return [path for path in written if path] + [write_page(RESULTS), README]


def main(argv: list[str] | None = None) -> int:
    return run_script(parser_of("all", __doc__), _make, argv)


def _make(args: argparse.Namespace) -> int:
    if not args.render:
        return run_tables("all", list(TABLES.values()), args)
    print("\n".join(f"written: {path}" for path in render()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
