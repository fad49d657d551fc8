"""Put finished runs of runs/ into the store: `python -m reproduce.publish [--tier quick] [--modality image] [NAME…]`.

Rows of the same methods and seeds are replaced, all others stay. `python -m reproduce.all --render` then rebuilds every table.
"""

from __future__ import annotations

import argparse
import sys

from eval.store import finished_runs, publish
from otca.errors import InputError
from reproduce.run import run_script, script
from reproduce.table import RESULTS
from reproduce.workers import RUNS


def main(argv: list[str] | None = None) -> int:
    """Publish every finished run of a modality and tier, or those of the methods named."""
    parser = script("publish", __doc__, "--modality", "--tier")
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods or variants (default: all that are finished)")
    return run_script(parser, _publish, argv)


def _publish(args: argparse.Namespace) -> None:
    runs = [r for r in finished_runs(RUNS, args.modality, args.tier) if not args.names or r.parent.name in args.names]
    if not runs or (missing := sorted(set(args.names) - {run.parent.name for run in runs})):
        named = ", ".join(missing if runs else args.names) or "any method"
        raise InputError(f"no finished run of {named} below {RUNS / args.modality / args.tier}")
    print(f"published {len(runs)} runs: {publish(runs, RESULTS, args.modality, args.tier).folder}")


if __name__ == "__main__":
    sys.exit(main())
