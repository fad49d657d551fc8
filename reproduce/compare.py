"""A method of one's own against a published one: `python -m reproduce.compare runs/image/cpu/my_method`.

Seeds are paired with those of the baseline, and the statistics are those of the tables. What would make the comparison
invalid is refused: another task, protocol or set of prompts, unequal cost, a held-out metric that was trained on, damaged runs.
p is adjusted over the methods given; of a published one it is also said what its published table shows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eval.columns import METRICS
from eval.markup import Grid, interval, markdown, markdown_table, number
from eval.published_row import PublishedRow, published_row
from eval.stats import bootstrap_interval
from eval.tables import (
    BASELINE,
    ROW_COLUMNS,
    adjusted_over,
    build_table,
    difference_cells,
    differences,
    heading,
    run_items,
    run_rows,
    verdict,
)
from otca.errors import InputError, nearest
from otca.runs import RunSpec
from otca.signals import run_command
from reproduce.comparable import COSTS, TOLERANCE, Runs, check_unlike, cost_ratios, find_baseline, find_runs

PRIMARY = "accuracy"
"""Metric that decides, fixed before any run; the others describe."""


# ------------------------------------------------------------------------------------------------------- what it comes to
def compare(rivals: Sequence[Runs], baseline: Runs, published: Path, metric: str = "", unequal_budget: bool = False) -> str:
    """The comparison as Markdown: costs, seeds, a table of differences, and what the primary metric shows.

    A method with one seed in common has intervals over prompts instead. ``published``: folder of the published tables.
    ``metric`` picks one; none given is all. Raises InputError for what cannot be compared.
    """
    seeds = {runs.name: check_unlike(runs, baseline, unequal_budget) for runs in rivals}
    modality, tier = baseline.place
    rows = _rows([(r, _label(r, baseline), seeds[r.name]) for r in rivals] + [(baseline, baseline.name, list(baseline.folders))])
    shared = set.intersection(*(set(part["metric"]) for _, part in rows.groupby("method")))
    if metric and metric not in shared:
        known = [name for name in METRICS if name in shared]
        raise InputError(f"metric {metric!r} is not one that all these runs have{nearest(metric, known)} ({', '.join(known)})")
    metrics = [metric] if metric else [name for name in METRICS if name in shared]
    primary = PRIMARY if PRIMARY in metrics else next((m for m in metrics if METRICS[m].held_out), metrics[0])
    out = [f"# Against {markdown(baseline.name)}: {markdown(modality)}, {markdown(tier)} tier"]
    out += ["\n".join(line for r in rivals for line in _head_lines(r, _label(r, baseline), baseline, seeds[r.name]))]
    several = [r for r in rivals if len(seeds[r.name]) > 1]
    if several:
        kept = rows[rows["method"].isin([baseline.name, *(_label(r, baseline) for r in several)]) & rows["metric"].isin(metrics)]
        table = build_table(kept, baseline.name, "", modality)
        out += [_difference_table(table, metrics), *_verdicts(table, primary)]
    for runs in (r for r in rivals if len(seeds[r.name]) == 1):
        out += _over_prompts(runs, _label(runs, baseline), baseline, seeds[runs.name][0], metrics)
    tables = [line for runs in rivals for line in _in_published_table(runs, baseline, published, primary)]
    out += ["\n".join(tables)] if tables else []
    if several and len(metrics) > 1:
        out += [f"{METRICS[primary].label} decides; p of the other metrics are not adjusted for how many there are."]
    return "\n\n".join(out) + "\n"


def _label(runs: Runs, baseline: Runs) -> str:
    return runs.name if runs.name != baseline.name else f"{runs.name} (given)"


def _rows(parts: Sequence[tuple[Runs, str, Sequence[int]]]) -> pd.DataFrame:
    """Rows as `eval.tables.collect` makes them, of the chosen seeds."""
    rows = [
        (label, *row[1:])
        for runs, label, seeds in parts
        for seed in seeds
        for row in run_rows(runs.folders[seed], RunSpec(*runs.place, runs.name, seed))
    ]
    return pd.DataFrame(rows, columns=list(ROW_COLUMNS))


def _head_lines(runs: Runs, label: str, baseline: Runs, seeds: Sequence[int]) -> list[str]:
    """Cost of a method, by how much it differs, and seeds: which there are, and whether they look chosen."""
    spent = [f"{np.mean([runs.manifests[s]['budget'][name] for s in seeds]):,.0f} {name.replace('_', ' ')}" for name in COSTS]
    ratios = cost_ratios(runs, baseline, seeds)
    off = [f"{ratio:.2f} × {name.replace('_', ' ')}" for name, ratio in ratios.items() if abs(ratio - 1) > TOLERANCE]
    budget = f"UNEQUAL BUDGET, {' and '.join(off)} of {baseline.name}" if off else "equal budget"
    alone = sorted(runs.folders.keys() - set(seeds))
    left = f"; without a partner and left out: {', '.join(map(str, alone))}" if alone else ""
    out = [f"- {markdown(label)}: {markdown(budget)} ({', '.join(spent)} a run); seeds {', '.join(map(str, seeds))}{left}"]
    unused = sorted(baseline.folders.keys() - set(seeds))
    if unused:
        out += [f"  - the baseline also has seeds {', '.join(map(str, unused))}, not used"]
    first = sorted(runs.folders.keys() | baseline.folders.keys())[: len(seeds)]
    if first != list(seeds):
        out += [f"  - WARNING: not the first seeds ({', '.join(map(str, first))}): choosing seeds invalidates a comparison"]
    return out


def _difference_table(table: pd.DataFrame, metrics: Sequence[str]) -> str:
    """One row a metric and method."""
    out: Grid = {}
    for metric in metrics:
        grid = differences(table, metric)
        for head, cells in ({"Metric": [(heading(metric), False)] * len(grid["Method"])} | grid).items():
            out.setdefault(head, []).extend(cells)
    return markdown_table(out)


def _verdicts(table: pd.DataFrame, metric: str) -> list[str]:
    """Over how many methods p is adjusted, and what the interval of each one's difference says."""
    compared = _compared(table, metric)
    rivals = adjusted_over(compared)
    single, family = len(rivals) < 2, f"p is adjusted over the {len(rivals)} rivals given here"
    out = []
    for method in compared:
        alone = "; a single comparison, not adjusted" if single or method not in rivals else ""
        out.append(f"- {markdown(verdict(table, metric, method).removesuffix('.') + alone)}.")
    family = "p is of a single comparison, not adjusted" if single else family
    return [f"{family}; what else was tried is not counted.", "\n".join(out)]


def _compared(table: pd.DataFrame, metric: str) -> list[str]:
    """Methods whose difference in a metric a table has."""
    return list(table[(table["metric"] == metric) & (table["method"] != table["baseline"])]["method"])


def _in_published_table(runs: Runs, baseline: Runs, published: Path, metric: str) -> list[str]:
    """What the published table of these very runs shows of the same two methods; nothing where there is none."""
    row = _published(baseline, published) and _published(runs, published)
    compared = _compared(row.table, metric) if row else []
    if row is None or row.baseline != baseline.name or runs.name not in compared:
        return []
    of_metric = row.table[row.table["metric"] == metric].set_index("method")
    pairs, rivals = of_metric["n_seeds"][[runs.name, row.baseline]].min(), adjusted_over(compared)
    _, _, p, _, _, _, shows = difference_cells(of_metric.loc[runs.name], pairs)
    family = f"adjusted over its {len(rivals)} rivals" if runs.name in rivals else "not adjusted"
    said = f"Published {row.title}, {row.folder}: {METRICS[metric].label}, {runs.name} against {row.baseline}, {pairs} pairs"
    return [f"- {markdown(f'{said}: p (Holm) {p}, {family}; shows: {shows}.')}"]


def _published(runs: Runs, results: Path) -> PublishedRow | None:
    """The row of a published table that was made from these runs, if there is one."""
    row = published_row(results, *runs.place, runs.name) if results.joinpath(*runs.place, runs.name).is_dir() else None
    made = row is not None and {manifest["hash"] for manifest in runs.manifests.values()} <= set(row.hashes.values())
    return row if made else None


def _over_prompts(runs: Runs, label: str, baseline: Runs, seed: int, metrics: Sequence[str]) -> list[str]:
    """One seed: differences of prompts' means, with a bootstrap over prompts. Metrics of whole sets have no interval."""
    own, other = (
        {row[2]: row[3] for row in run_rows(r.folders[seed], RunSpec(*r.place, r.name, seed))} for r in (runs, baseline)
    )
    means = [_prompt_means(side.folders[seed]) for side in (runs, baseline)]
    rows = []
    for metric in metrics:
        decimals, low, high, count, better = METRICS[metric].decimals, np.nan, np.nan, "–", np.nan
        if metric in means[0]:
            difference_P = (means[0][metric] - means[1][metric]).dropna().to_numpy()
            low, high = bootstrap_interval(difference_P, trimmed=0)
            count = str(len(difference_P))
            up = np.mean((difference_P > 0) + 0.5 * (difference_P == 0))
            better = {True: up, False: 1 - up, None: np.nan}[METRICS[metric].higher_is_better]
        spread = interval(low, high, decimals).strip() or "–"
        rows.append((heading(metric), number(own[metric] - other[metric], decimals), spread, count, number(better, 2)))
    heads = ("Metric", "Difference", "95 % interval over prompts", "Prompts", "Share of prompts better")
    return [
        f"{markdown(label)}, seed {seed} alone: intervals over prompts LEAVE OUT THE VARIANCE OF TRAINING; they hold for these "
        "two checkpoints and show nothing about the methods.",
        markdown_table({head: [(row[i], False) for row in rows] for i, head in enumerate(heads)}),
    ]


def _prompt_means(run: Path) -> pd.DataFrame:
    """One row a prompt: the mean of each metric over its samples, the accuracy also by skill (NaN for other skills)."""
    which, items = run_items(run)
    if "accuracy" in items:
        for skill in which["skill"].unique():
            items[f"accuracy/{skill}"] = items["accuracy"].where(which["skill"] == skill)
    return items.groupby(which["prompt_id"]).mean()


def main(argv: list[str] | None = None) -> int:
    """Compare and print; exit code 2 with one line where the runs cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="…/<method>, or single …/<method>/seed<k>")
    parser.add_argument("--against", default=BASELINE, help=f"published method or folder to compare with (default: {BASELINE})")
    parser.add_argument("--metric", default="", help="the one metric to compare (default: all; accuracy decides)")
    parser.add_argument("--rows", type=Path, default=Path("results"), help="folder of the published runs (default: results)")
    parser.add_argument("--unequal-budget", action="store_true", help="go on where costs differ by more than 1 %%")
    args = parser.parse_args(argv)

    def command() -> None:
        rivals = find_runs(args.runs)
        baseline = find_baseline(args.against, args.rows, rivals[0].place)
        print(compare(rivals, baseline, args.rows, args.metric, args.unequal_budget), end="")

    return run_command("compare", command)


if __name__ == "__main__":
    sys.exit(main())
