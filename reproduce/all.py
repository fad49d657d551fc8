"""Everything at one tier: Tables 1 to 4, the ablations, credit fidelity.

    python -m reproduce.all --tier cpu                local processes, one a core; start it again to go on
    python -m reproduce.all --tier cpu --slurm PARTITION --jobs 40 [--gpus 1]
                                                      the same runs as 40 jobs of Slurm, of one core (and one GPU) each
    python -m reproduce.all --tier cpu --progress     done / running / left, and the time left
    python -m reproduce.all --tier cpu --render       rebuild every published table of the tier from published rows

Each table's own script makes the same runs; this one makes them all first, in one grid. Where all are finished it writes the
tables, in this process, with Slurm too. Credit fidelity, one study for all tiers, is measured with the tier cpu, in processes on
this machine; with --slurm it is left out, and the commands that measure it are printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from otca.errors import InputError
from otca.runs import RunSpec
from otca.signals import run_command
from reproduce import ablations, credit_fidelity, table1, table2, table3, table4
from reproduce.costs import total_cost_line
from reproduce.jobs import add_jobs, count_of, jobs_of
from reproduce.readme import update_readme
from reproduce.table import Table

MEDIA = ("image", "video")

TABLES: tuple[Table, ...] = (*(script.TABLE for script in (table1, table2, table3, table4)), *ablations.families("cpu"))
"""What is made at either tier, the tables of the paper first."""

JOBS_HELP = (
    "jobs side by side (default: one a core of this machine; one if it has a GPU); with --slurm, how many are submitted: say it, "
    "the default knows nothing of the cluster"
)


def arms(tier: str) -> list[RunSpec]:
    """Every run of every table once, those of earlier tables and lower seeds first."""
    return list(dict.fromkeys(arm for table in TABLES for arm in table.arms(tier)))


def main(argv: list[str] | None = None) -> int:
    """Parse, run, write; exit code 2 with one line where something cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=("quick", "cpu"), default="cpu", help="how large the runs are (default: cpu)")
    add_jobs(parser, JOBS_HELP)
    parser.add_argument("--slurm", default="", metavar="PARTITION", help="submit the jobs to this partition of Slurm")
    parser.add_argument(
        "--gpus", default="", metavar="N", help="with --slurm: GPUs of each job, which uses one at most (default: none)"
    )
    parser.add_argument("--progress", action="store_true", help="print how far the runs are, and stop")
    parser.add_argument("--render", action="store_true", help="only rebuild the published tables from published rows")
    parser.add_argument("--allow-trained-metric", action="store_true", help="let an arm train on a held-out metric")
    args = parser.parse_args(argv)
    return run_command("all", lambda: _make(args))


def render(tier: str) -> None:
    """Published rows → every published table and figure of a tier, and what its runs took in the README."""
    for table in TABLES:
        print(f"written: {table.render(tier)}", flush=True)
    update_readme(f"cost-all-{tier}", total_cost_line([Path("results") / modality / tier / "cost.csv" for modality in MEDIA]))


def _make(args: argparse.Namespace) -> None:
    wanted, root, jobs, gpus = arms(args.tier), Path("runs"), jobs_of(args.jobs), count_of("--gpus", args.gpus)
    if args.render:
        render(args.tier)
        return
    from reproduce.grid import progress_text, run_grid
    from reproduce.runner import check_trained_arms

    if args.progress:
        print(progress_text(wanted, root, jobs))
        return
    if not args.allow_trained_metric:
        check_trained_arms(wanted)
    if gpus and not args.slurm:
        raise InputError(f"--gpus {gpus} goes with --slurm; local processes take this machine's GPU by themselves")
    run_grid(wanted, root, jobs, args.slurm, gpus)
    for table in TABLES:
        print(f"written: {table.write(root, args.tier)}")
    for modality in MEDIA if args.tier == "cpu" else ():
        if args.slurm:
            print(f"not measured with --slurm: credit fidelity; start python -m reproduce.credit_fidelity --modality {modality}")
        else:
            credit_fidelity.make(modality, jobs)


if __name__ == "__main__":
    sys.exit(main())
