"""What every table's script does: make what is missing, gather it into a store, write the table from the store alone."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from eval.markup import Grid as Columns
from eval.page import write_page
from eval.plot_credit import credit_maps
from eval.plot_curves import learning_curves
from eval.plot_tradeoffs import trade_offs
from eval.plots import dot_plot, sample_grid
from eval.store import Store, finished_runs, publish, verdicts
from eval.tables import EQUAL_CALLS, UNTRAINED, build_table, headline, off_budget, primary_of, said, winners, write_table
from otca.distributed import end_processes, is_main
from otca.presets import FEWER_SEEDS, SEEDS
from otca.runs import RunSpec
from otca.signals import run_command
from reproduce.run import RUNS, add_options, make_runs
from reproduce.variants import named_arm

COMPARISON = ("base", "uniform_grpo", "static_multi_reward", "otca_tcd", "otca_moca", "otca")
QUICK = ("base", "uniform_grpo", "static_multi_reward", "otca")
"""The paper's comparison in minutes: without the halves of OTCA."""
BEYOND = ("process_credit",)
"""Rows that the paper lacks, of the `cpu` tier alone."""
HEADLINE = (*QUICK, *BEYOND)
"""Methods with all seeds of their tier."""
MOST_CURVES = 9
"""Methods up to which a table has learning curves and a sample grid; larger ones have dots."""
RESULTS, MADE = Path("results"), RUNS / "results"
"""Roots of stores and tables: what is published, and what this machine made, laid out alike."""
EMBEDDED = "Embedded task: the numbers are this repository's own, not the paper's."


@dataclass(frozen=True)
class Table:
    """One table: ``name`` is its script and folder, ``metrics`` its columns (empty: all that its runs have), ``primary`` decides.

    ``quick`` are the methods of that tier, where they are fewer; ``beyond`` are rows of the `cpu` tier alone; a ``wide`` table
    has fewer seeds there; ``figures``: whether it draws any.
    """

    name: str
    title: str
    modalities: tuple[str, ...]
    methods: tuple[str, ...]
    primary: str = "accuracy"
    metrics: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    budget: str = EQUAL_CALLS
    quick: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    wide: bool = False
    figures: bool = True

    def rows(self, tier: str) -> tuple[str, ...]:
        """Methods and variants of the table at a tier."""
        methods = self.quick if tier == "quick" and self.quick else self.methods
        return (*methods, *(self.beyond if tier == "cpu" else ()))

    def arms(self, tier: str) -> list[RunSpec]:
        """Every run of the table, seed by seed, so that an interrupted table has whole seeds."""
        fewer = FEWER_SEEDS.get(tier, {}).get("wide" if self.wide else "core", SEEDS[tier])
        return [
            named_arm(modality, tier, name, seed)
            for modality in self.modalities
            for seed in range(SEEDS[tier])
            for name in self.rows(tier)
            if seed < (SEEDS[tier] if name in HEADLINE else fewer)
        ]

    def stores(self, root: Path, tier: str) -> list[Store]:
        """The stores below ``root`` that have every method of the table (but what is beyond it) and any of its metrics."""
        found = [Store(root, modality, tier) for modality in self.modalities]
        whole = [store for store in found if {*self.rows(tier)} - {*self.beyond} <= {*store.methods}]
        return [store for store in whole if not self.metrics or {*self.metrics} & {*store.metrics["metric"]}]

    def write(self, root: Path, tier: str) -> Path | None:
        """Table and figures from the stores below ``root``; returns the folder written, None where no store has its runs."""
        folder, tables, best, notes = root / self.name / tier, [], {}, []
        for store in self.stores(root, tier):
            part = build_table(store, self.rows(tier), self.metrics, budget=self.budget)
            tables.append(part)
            best[store.modality] = winners(store, part)
            notes += _budget_notes(part)
            if self.figures:
                self._draw(store, part, folder, f"-{store.modality}" if len(self.modalities) > 1 else "")
        if not tables:
            return None
        table = pd.concat(tables)
        tasks = sorted({task for store in self.stores(root, tier) for task in store.runs["task"].dropna()})
        notes = [f"Task: {', '.join(tasks)}.", *_seed_notes(table), *notes, *self.notes]
        write_table(table, folder, f"{self.title} ({tier} tier)", notes, best, self.primary)
        return folder

    def _draw(self, store: Store, part: pd.DataFrame, folder: Path, suffix: str) -> None:
        shown = list(part["method"].unique())
        trade_offs(store, shown, self.primary, folder / f"trade-offs{suffix}")
        if len(shown) > MOST_CURVES:
            dot_plot(part, [m for m in part["metric"].unique() if "/" not in m][:6], folder / f"dots{suffix}")
            return
        for spent, name in (("samples", "curves"), ("network_evaluations", "curves-evaluations"), ("seconds", "curves-seconds")):
            learning_curves(store, shown, folder / f"{name}{suffix}", spent)
        credit_maps(store, [m for m in shown if m != UNTRAINED], folder / f"credit{suffix}")
        _draw_grid(store, shown, folder / f"grid{suffix}.png")

    def render(self, tier: str) -> Path | None:
        """Published rows → published table and figures."""
        return self.write(RESULTS, tier)

    def gather(self, tier: str) -> None:
        """Put the table's finished runs below runs/ into the store of this machine."""
        names = {arm.path for arm in self.arms(tier)}
        for modality in self.modalities:
            runs = [run for run in finished_runs(RUNS, modality, tier) if run.relative_to(RUNS) in names]
            if runs:
                publish(runs, MADE, modality, tier)

    def main(self, description: str, argv: list[str] | None = None) -> int:
        """Parse, run, print; exit code 2 with one line where the input cannot be used."""
        args = parser_of(self.name, description).parse_args(argv)
        return run_command(self.name, lambda: run_tables([self], args))


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every table's script has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m reproduce.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=tuple(SEEDS), default="quick", help="how large the runs are (default: quick)")
    parser.add_argument("--render", action="store_true", help="only rebuild the published table from published rows")
    add_options(parser)
    return parser


def run_tables(tables: Sequence[Table], args: argparse.Namespace) -> int:
    """Make, render or look over tables and print them; exit code 2 with one line for each whose input cannot be used."""
    code = 0
    for table in tables:
        code = max(code, run_command(table.name, functools.partial(_make, table, args)))
        if code > 128:  # a signal ends them all
            break
    if code == 0 and is_main() and not args.render and MADE.is_dir():
        print(f"written: {write_page(MADE)}")
    end_processes()
    return code


def _make(table: Table, args: argparse.Namespace) -> int:
    """What the options ask for of one table; returns the exit code."""
    if args.render:
        folder, root = table.render(args.tier), RESULTS
    else:
        code = make_runs(table.name, args.tier, table.arms(args.tier), args)
        if code is not None or not is_main():
            return code or 0
        table.gather(args.tier)
        folder, root = table.write(MADE, args.tier), MADE
    if folder:
        show(table, root, args.tier)
        print(f"written: {folder}")
    else:
        print(f"{table.name}: no rows of the {args.tier} tier below {root}")
    return 0


def show(table: Table, root: Path, tier: str) -> None:
    """The primary metric on the terminal, and a sentence of what it shows."""
    console, every = Console(), pd.read_csv(root / table.name / tier / "table.csv")
    for modality, part in every.groupby("modality", sort=False):
        metric = primary_of(part, table.primary)
        narrow = ("P(better)", "Evaluations to target", "Seeds")  # these are left to table.md
        columns = {head: cells for head, cells in headline(part, metric, {}).items() if head not in narrow}
        console.print(grid_of(f"{table.title} ({modality}, {tier} tier)", columns))
        console.print(said(part, metric), markup=False, highlight=False)


def grid_of(title: str, columns: Columns) -> Grid:
    """Columns of texts as a table of the terminal, at most as wide as it is."""
    grid = Grid(title=title, box=SIMPLE, pad_edge=False, title_justify="left")
    for i, head in enumerate(columns):
        grid.add_column(head, justify="right" if i else "left", overflow="fold", no_wrap=not i)
    for cells in zip(*columns.values()):
        grid.add_row(*(escape(text) for text, _ in cells))
    return grid


def _draw_grid(store: Store, methods: Sequence[str], path: Path) -> None:
    """Pictures of the same prompts and noise, a column a method, from the gallery's strips; clips play on the page alone."""
    folder = store.folder / "gallery"
    shown = [method for method in methods if (folder / f"{method}.png").is_file()]
    if not shown:
        return
    prompts = pd.read_csv(folder / "prompts.csv", dtype=str, keep_default_na=False)
    strips = [np.asarray(Image.open(folder / f"{method}.png")) for method in shown]
    right = verdicts(store, shown, list(prompts["prompt_id"]))
    cells = [np.split(strip, len(prompts)) for strip in strips]
    marks = [[right[method][row] for method in shown] for row in range(len(prompts))]
    sample_grid([list(row) for row in zip(*cells)], list(prompts["text"]), shown, path, marks)


def _budget_notes(part: pd.DataFrame) -> list[str]:
    """Methods that are not at the budget that their table says, and by how much."""
    ratios = off_budget(part).rename(columns=lambda name: name.replace("_", " "))
    texts = [f"{method} ({', '.join(f'{of[name]:.2f} × {name}' for name in ratios)})" for method, of in ratios.iterrows()]
    return (
        [f"Not at that budget, in multiples of {part['baseline'].iloc[0]} ({part['modality'].iloc[0]}): {'; '.join(texts)}."]
        if texts
        else []
    )


def _seed_notes(table: pd.DataFrame) -> list[str]:
    """What so many seeds can show."""
    out = ["A seed fixes training prompts, all noise, and evaluation noise, the same for every method."]
    if table["n_seeds"].nunique() > 1:
        out.append(
            "Means are over each row's own seeds: compare rows of unlike numbers by their differences, of shared seeds alone."
        )
    if (fewest := table["n_seeds"].min()) < 5:
        out.append(f"{fewest} seeds show that training works and which rewards move; they cannot rank methods.")
    return out
