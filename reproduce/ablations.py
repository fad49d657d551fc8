"""Ablations over the parts of the credit, family by family, on the embedded image task.

    python -m reproduce.ablations --family tcd            train what is missing, write runs/results/ablations/tcd/quick/
    python -m reproduce.ablations --family tcd --render   rebuild results/ablations/tcd/quick/ from published rows
    python -m reproduce.ablations --tier cpu              every family

Methods share prompts, initial noise and seeds, and runs are shared among families and with Table 1.
"""

from __future__ import annotations

import argparse
import sys

from reproduce.run import run_script
from reproduce.table import TABLES, parser_of, run_tables

FAMILIES = {name.partition("/")[2]: table for name, table in TABLES.items() if name.startswith("ablations/")}


def main(argv: list[str] | None = None) -> int:
    parser = parser_of("ablations", __doc__)
    parser.add_argument("--family", choices=(*FAMILIES, "all"), default="all", help="which family (default: all)")
    return run_script(parser, _make, argv)


def _make(args: argparse.Namespace) -> int:
    chosen = list(FAMILIES.values()) if args.family == "all" else [FAMILIES[args.family]]
    return run_tables("ablations", chosen, args)


if __name__ == "__main__":
    sys.exit(main())
