"""Put finished runs of runs/ into the store: `python -m reproduce.publish [--tier quick] [--modality image] [NAME…]`.

Rows of the same methods and seeds are replaced, all others stay. `python -m reproduce.all --render` then rebuilds every table.
"""

from __future__ import annotations

import sys

from eval.store import finished_runs, publish
from otca.errors import InputError
from otca.signals import run_command
from reproduce.run import RUNS, add_modality, add_tier, script
from reproduce.table import RESULTS


def main(argv: list[str] | None = None) -> int:
    """Publish every finished run of a modality and tier, or those of the methods named; exit code 2 with one line on failure."""
    parser = script("publish", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods or variants (default: all that are finished)")
    add_modality(parser)
    add_tier(parser)
    args = parser.parse_args(argv)

    def command() -> None:
        found = finished_runs(RUNS, args.modality, args.tier)
        runs = [run for run in found if not args.names or run.parent.name in args.names]
        missing = set(args.names) - {run.parent.name for run in found}
        if missing or not runs:
            raise InputError(
                f"no finished run of {', '.join(sorted(missing)) or 'any method'} below {RUNS / args.modality / args.tier}"
            )
        print(f"published {len(runs)} runs: {publish(runs, RESULTS, args.modality, args.tier).folder}")

    return run_command("publish", command)


if __name__ == "__main__":
    sys.exit(main())
