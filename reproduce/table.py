"""What every table's script does: train what is missing, write the table, rebuild it from published rows."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from eval.columns import METRICS
from eval.markup import markdown, markdown_table
from eval.pairs import variant_differences, variant_grid
from eval.plots import dot_plot
from eval.sources import run_hashes, write_sources
from eval.tables import EQUAL_CALLS, EQUAL_EVALUATIONS, build_table, clear_winners, collect, differences, write_table
from otca.distributed import end_processes, is_main
from otca.errors import InputError
from otca.files import write_atomic
from otca.presets import FEWER_SEEDS, SEEDS
from otca.runs import RunSpec
from otca.signals import run_command
from reproduce.comparable import COSTS, TOLERANCE
from reproduce.costs import cost_line
from reproduce.figures import draw_figures, draw_outcomes, draw_training
from reproduce.jobs import add_jobs, jobs_of
from reproduce.readme import update_readme
from reproduce.variants import named_arm

COMPARISON = ("base", "uniform_grpo", "static_multi_reward", "otca_tcd", "otca_moca", "otca")

BEYOND = ("process_credit", "process_credit@equal", "process_credit@early3-equal40")
"""Rows that the paper lacks, of the `cpu` tier alone: at equal iterations; at equal evaluations; and, with three states scored
instead of all, at 40 % of the evaluations."""

HEADLINE = ("base", "uniform_grpo", "static_multi_reward", "otca", *BEYOND)
"""Arms with all seeds of their tier."""

MOST_CROSSES = 12
"""Methods up to which a table has them as crosses in one plot."""

MOST_CURVES = 9
"""Methods, the untrained one included, up to which a table has learning curves and sample grids; larger ones have dots."""


@dataclass(frozen=True)
class Table:
    """One table of the paper: ``name`` is its script and folder, ``metrics`` are its columns (empty = all of the runs).

    ``primary`` is the metric of the table of differences; ``notes`` are printed below every tier's table,
    ``budget`` says what its arms have in common. A table over several ``media`` has a section for each. One whose pictures are
    those of other tables goes without ``figures``; one of too many methods for learning curves has those of the methods in
    ``curves``. ``beyond`` are rows that the paper lacks, of the `cpu` tier alone; a ``wide`` table has fewer seeds there.
    ``versus`` are methods from which the others' differences are told as well, at that tier, in ``pairs/``, which also has
    those of a wide table's variants from their own methods.
    """

    name: str
    title: str
    media: tuple[str, ...]
    methods: tuple[str, ...]
    primary: str
    notes: tuple[str, ...]
    metrics: tuple[str, ...] = ()
    budget: str = EQUAL_CALLS
    figures: bool = True
    curves: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    wide: bool = False
    versus: tuple[str, ...] = ()

    def rows(self, tier: str) -> tuple[str, ...]:
        """Methods and variants of the table at a tier."""
        return (*self.methods, *(self.beyond if tier == "cpu" else ()))

    def seeds(self, tier: str, name: str) -> int:
        """Seeds of a method or variant at a tier: headline arms have all."""
        fewer = FEWER_SEEDS.get(tier, {})
        return SEEDS[tier] if name in HEADLINE else fewer.get("wide" if self.wide else "core", SEEDS[tier])

    def arms(self, tier: str) -> list[RunSpec]:
        """Every run of the table, seed by seed, so that an interrupted table has whole seeds."""
        return [
            named_arm(modality, tier, name, seed)
            for modality in self.media
            for seed in range(SEEDS[tier])
            for name in self.rows(tier)
            if seed < self.seeds(tier, name)
        ]

    def write(self, rows_root: Path, tier: str) -> Path:
        """Table and figures from the runs below ``rows_root``; returns the folder written."""
        folder = rows_root / self.name / tier
        tables, winners, runs, methods = [], {}, {}, self.rows(tier)
        for modality in self.media:
            rows = collect(rows_root, modality, tier, methods)
            runs |= run_hashes(rows, modality, tier)
            if self.metrics:
                rows = rows[rows["metric"].isin(self.metrics)]
            tables.append(build_table(rows, budget_label=self.budget, modality=modality))
            at_budget = rows[~rows["method"].isin(off_budget(tables[-1]).index)]
            winners |= clear_winners(at_budget, self.budget, modality)
            if tier == "cpu" and (self.versus or self.wide):
                self._write_pairs(rows, modality, tier, rows_root)
            suffix = f"-{modality}" if len(self.media) > 1 else ""
            if len(methods) > MOST_CURVES:
                dot_plot(tables[-1], self.metrics, folder / f"dots{suffix}")
                if self.curves:
                    draw_training(rows_root / modality / tier, self.curves, folder)
            elif self.figures:
                draw_figures(rows_root, modality, tier, methods, folder)
            if self.figures and len(methods) <= MOST_CROSSES:
                draw_outcomes(rows, rows_root / modality / tier, self.primary, folder, suffix)
        made = pd.concat(tables)
        notes = [*_seed_notes(dict(zip(made["method"], made["n_seeds"]))), *_budget_notes(made), *self.notes]
        primary = self.primary if (made["metric"] == self.primary).any() else _first_held_out(made, self.name)
        write_table(made, folder, f"{self.title} ({tier} tier)", notes, winners, primary)
        write_sources(folder, rows_root, runs)
        return folder

    def _write_pairs(self, rows: pd.DataFrame, modality: str, tier: str, rows_root: Path) -> None:
        """``pairs/<table>-<tier>.md``: differences in the primary metric from each method of ``versus``, as those in table.md.

        A wide table's has those of its variants from their own methods as well, in the trained metrics, too.
        """
        label, text = METRICS[self.primary].label, [f"# {markdown(self.title)} ({tier} tier): pairs"]
        for name in self.versus:
            against = build_table(rows[rows["metric"] == self.primary], name, self.budget, modality)
            text += [f"## {label}: difference from {markdown(name)}", markdown_table(differences(against, self.primary))]
        asked = [m for m in METRICS if m == self.primary or (not METRICS[m].held_out and (rows["metric"] == m).any())]
        made = variant_differences(rows[rows["metric"].isin(asked)], modality) if self.wide else pd.DataFrame()
        for metric in asked if len(made) else ():
            text += [f"## {METRICS[metric].label}: difference of variants from their own methods"]
            text += [markdown_table(variant_grid(made, metric))]
        if len(text) > 1:
            text += ["Budgets, seeds and what the columns mean: beside the table."]
            write_atomic(rows_root / "pairs" / f"{self.name.replace('/', '-')}-{tier}.md", "\n\n".join(text) + "\n")

    def render(self, tier: str) -> Path:
        """Published rows → published table, figures and README block."""
        folder = self.write(Path("results"), tier)
        update_readme(f"{self.name}-{tier}", (folder / "table.md").read_text())
        pairs = Path("results/pairs") / f"{self.name.replace('/', '-')}-{tier}.md"
        if pairs.is_file():
            update_readme(f"pairs-{self.name}-{tier}", pairs.read_text())
        for modality in self.media:
            spent = cost_line(Path("results") / modality / tier / "cost.csv", self.rows(tier))
            update_readme(f"cost-{self.name}-{modality}-{tier}", spent)
        return folder

    def reproduce(self, tier: str, jobs: int) -> Path:
        """Train and evaluate what is missing below runs/, then write the table there."""
        from reproduce.runner import run_arms

        run_arms(self.arms(tier), Path("runs"), jobs)
        return self.write(Path("runs"), tier) if is_main() else Path("runs") / self.name / tier

    def main(self, description: str, argv: list[str] | None = None) -> int:
        """Parse, run, print; exit code 2 with one line where the input cannot be used."""
        args = parser_of(self.name, description).parse_args(argv)
        return run_command(self.name, lambda: run_commands([self], args))


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every table's script has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m reproduce.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=tuple(SEEDS), default="quick", help="how large the runs are (default: quick)")
    parser.add_argument("--dry-run", action="store_true", help="resolve settings, files, disk space and processes, and stop")
    parser.add_argument("--render", action="store_true", help="only rebuild the published table from published rows")
    parser.add_argument("--allow-trained-metric", action="store_true", help="let an arm train on a held-out metric")
    add_jobs(parser)
    return parser


def run_commands(tables: Sequence[Table], args: argparse.Namespace) -> int:
    """Make, render or look over tables and print them; exit code 2 with one line for each whose input cannot be used.

    Raises InputError for options that are wrong for all of them.
    """
    jobs, code = jobs_of(args.jobs), 0
    for table in tables:
        code = max(code, run_command(table.name, functools.partial(_make, table, args, jobs)))
        if code > 128:  # a signal ends them all
            break
    end_processes()
    return code


def _make(table: Table, args: argparse.Namespace, jobs: int) -> int:
    """What the options ask for of one table; returns the exit code."""
    if not (args.render or args.allow_trained_metric):
        from reproduce.runner import check_trained_arms

        check_trained_arms(table.arms(args.tier))
    if args.dry_run:
        from reproduce.dry_run import preflight

        return preflight(table.name, args.tier, table.arms(args.tier), Path("runs")) if is_main() else 0
    folder = table.render(args.tier) if args.render else table.reproduce(args.tier, jobs)
    if is_main():
        print((folder / "table.md").read_text())
        print(f"written: {folder}")
    return 0


def _first_held_out(table: pd.DataFrame, name: str) -> str:
    """The metric to compare by where runs lack the table's own: other tasks have other metrics."""
    held_out = table.loc[table["held_out"], "metric"]
    if held_out.empty:
        raise InputError(f"{name}: its runs have no held-out metric; give the tier some (held_out in otca/presets.py)")
    return held_out.iloc[0]


def off_budget(part: pd.DataFrame) -> pd.DataFrame:
    """Trained methods of a section of a table that are not at its budget: what each spent for each 1 of the baseline."""
    alike = COSTS[:1] if part["budget"].iloc[0] == EQUAL_EVALUATIONS else COSTS
    spent = part.groupby("method", sort=False)[list(alike)].first()
    ratios = spent[(spent > 0).any(axis=1)] / spent.loc[part["baseline"].iloc[0]]
    return ratios[(ratios - 1).abs().max(axis=1) > TOLERANCE]


def _budget_notes(table: pd.DataFrame) -> list[str]:
    """Arms that are not at the budget that their table says, and by how much: one line a modality, none where all are."""
    out = []
    for (modality, _, baseline), part in table.groupby(["modality", "budget", "baseline"], sort=False):
        ratios = off_budget(part).rename(columns=lambda name: name.replace("_", " "))
        said = [f"{method} ({', '.join(f'{of[name]:.2f} × {name}' for name in ratios)})" for method, of in ratios.iterrows()]
        if said:
            where = f" ({modality})" if table["modality"].nunique() > 1 else ""
            out.append(f"Not at that budget{where}, in multiples of {baseline}: {'; '.join(said)}.")
    return out


def _seed_notes(seeds: dict[str, int]) -> list[str]:
    """What so many seeds of each method can show."""
    counts = sorted(set(seeds.values()), reverse=True)
    said = f"{counts[0]} seeds an arm"
    if len(counts) > 1:
        said = "; ".join(f"{n} seeds: {', '.join(m for m, own in seeds.items() if own == n)}" for n in counts)
    out = [f"{said}; a seed fixes training prompts, all noise, and evaluation noise, the same in every arm."]
    if len(counts) > 1:
        out.append(
            "Means are over each row's own seeds: compare rows of unlike numbers by their differences, of shared seeds alone."
        )
    if counts[-1] < 5:
        out.append(
            f"{counts[-1]} seeds can show that training works and which objectives move; they cannot rank methods: intervals of "
            f"differences are wide, and a sign-flip test cannot fall below p = {2 / 2 ** counts[-1]:g}."
        )
    return out
