"""What every table's script does: make what is missing, gather it into a store, write the table from the store alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from eval.columns import METRICS
from eval.figures import credit_maps, dot_plot, learning_curves, trade_offs
from eval.markup import show
from eval.page import write_page
from eval.plots import sample_grid
from eval.store import Store, finished_runs, publish, verdicts
from eval.tables import UNTRAINED, build_table, headline, metric_of, off_budget, primary_of, said, write_table
from otca.distributed import end_processes, is_main
from otca.presets import FEWER_SEEDS, SEEDS
from otca.runs import RunSpec
from reproduce.run import MAKING, make_runs, run_script, script
from reproduce.variants import named_arm
from reproduce.workers import RUNS

HEADLINE = ("base", "uniform_grpo", "static_multi_reward", "otca", "value_head")
"""Methods with all seeds of their tier."""
MOST_CURVES = 9
"""Methods up to which a table has learning curves and a sample grid; larger ones have dots."""
RESULTS, MADE = Path("results"), RUNS / "results"
"""Roots of stores and tables: what is published, and what this machine made, laid out alike."""


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
        folder, stores = root / self.name / tier, self.stores(root, tier)
        if not stores:
            return None
        parts = [build_table(store, self.rows(tier), self.metrics) for store in stores]
        for store, part in zip(stores, parts) if self.figures else ():
            self._draw(store, part, folder, f"-{store.modality}" if len(self.modalities) > 1 else "")
        table, tasks = pd.concat(parts), sorted({task for store in stores for task in store.runs["task"].dropna()})
        notes = [f"Task: {', '.join(tasks)}.", *_seed_notes(table), *filter(None, map(_budget_note, parts)), *self.notes]
        write_table(table, folder, f"{self.title} ({tier} tier)", notes, self.primary)
        return folder

    def _draw(self, store: Store, part: pd.DataFrame, folder: Path, suffix: str) -> None:
        shown, metrics = list(part["method"].unique()), list(part["metric"].unique())
        trade_offs(store, shown, self.primary, folder / f"trade-offs{suffix}")
        if len(shown) > MOST_CURVES:
            dot_plot(part, [m for m in metrics if "/" not in m][:6], folder / f"dots{suffix}")
            return
        trained = [(m, "samples") for m in metrics if m in store.metrics["metric"].values and not metric_of(m).held_out]
        learning_curves(store, shown, folder / f"curves{suffix}", [("accuracy", "samples")])
        costs = [("accuracy", "network_evaluations"), ("accuracy", "seconds")]
        learning_curves(store, shown, folder / f"curves-cost{suffix}", costs)
        learning_curves(store, shown, folder / f"curves-rewards{suffix}", trained)
        credit_maps(store, [m for m in shown if m != UNTRAINED], folder / f"credit{suffix}")
        _draw_grid(store, shown, folder / f"grid{suffix}.png")

    def gather(self, tier: str) -> None:
        """Put the table's finished runs below runs/ into the store of this machine."""
        names = {arm.path for arm in self.arms(tier)}
        for modality in self.modalities:
            runs = [run for run in finished_runs(RUNS, modality, tier) if run.relative_to(RUNS) in names]
            if runs:
                publish(runs, MADE, modality, tier)

    def show(self, root: Path, tier: str) -> None:
        """The primary metric on the terminal, and a sentence of what it shows."""
        table = pd.read_csv(root / self.name / tier / "table.csv").assign(best=False)
        for modality, part in table.groupby("modality", sort=False):
            metric = primary_of(part, self.primary)
            grid = headline(part, metric)
            for head in ("P(better)", "Evaluations to target", "Seconds to target"):  # table.md has them
                grid.pop(head, None)
            value = list(grid)[1]
            grid[value] = [text.partition(" [")[0] for text in grid[value]]
            show(f"{self.title} ({modality}, {tier} tier)", grid, said(part, metric))


def read_tables() -> dict[str, Table]:
    """The tables of tables.yaml by name, those of the paper first; the metrics of accuracy/* are those of every skill."""
    content = yaml.safe_load(Path(__file__).with_name("tables.yaml").read_text(encoding="utf-8"))
    del content["shared"]
    skills = [name for name in METRICS if name.startswith("accuracy/")]
    for entry in content.values():
        entry["metrics"] = [m for name in entry.get("metrics", []) for m in (skills if name == "accuracy/*" else [name])]
    return {
        name: Table(name, **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()})
        for name, entry in content.items()
    }


TABLES = read_tables()


def main(name: str, description: str, argv: list[str] | None = None) -> int:
    return run_script(parser_of(name, description), lambda args: run_tables(name, [TABLES[name]], args), argv)


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """The options that every table's script has."""
    parser = script(name, description, "--tier", *MAKING)
    parser.add_argument("--render", action="store_true", help="only rebuild what is published, from published rows")
    return parser


def arms_of(tables: Iterable[Table], tier: str) -> list[RunSpec]:
    """Every run of the tables once, those of earlier tables and lower seeds first."""
    return list(dict.fromkeys(arm for table in tables for arm in table.arms(tier)))


def run_tables(name: str, tables: Sequence[Table], args: argparse.Namespace) -> int:
    """Make the missing runs of all tables, then write and print each; or render the published ones. Returns the exit code."""
    code = None if args.render else make_runs(name, args.tier, arms_of(tables, args.tier), args)
    if code is None and is_main():
        root = RESULTS if args.render else MADE
        for table in () if args.render else tables:
            table.gather(args.tier)
        for table in tables:
            if folder := table.write(root, args.tier):
                table.show(root, args.tier)
            print(f"written: {folder}" if folder else f"{table.name}: no rows of the {args.tier} tier below {root}")
        if not args.render:
            print(f"written: {write_page(MADE)}")
    end_processes()
    return code or 0


def _draw_grid(store: Store, methods: Sequence[str], path: Path) -> None:
    """Pictures of the same prompts and noise, a column a method, from the gallery's strips; clips play on the page alone."""
    folder = store.folder / "gallery"
    shown = [method for method in methods if (folder / f"{method}.png").is_file()]
    if not shown:
        return
    prompts = pd.read_csv(folder / "prompts.csv", dtype=str, keep_default_na=False)
    strips = [np.split(np.asarray(Image.open(folder / f"{method}.png")), len(prompts)) for method in shown]
    right = verdicts(store, shown, list(prompts["prompt_id"]))
    marks = zip(*(right[method] for method in shown))
    sample_grid([list(row) for row in zip(*strips)], list(prompts["text"]), shown, path, list(marks))


def _budget_note(part: pd.DataFrame) -> str:
    """Methods that are not at the budget that their table says, and by how much; nothing where all are."""
    ratios = off_budget(part).rename(columns=lambda name: name.replace("_", " "))
    texts = [f"{method} ({', '.join(f'{of[name]:.2f} × {name}' for name in ratios)})" for method, of in ratios.iterrows()]
    baseline, modality = part[["baseline", "modality"]].iloc[0]
    return f"Not at that budget, in multiples of {baseline} ({modality}): {'; '.join(texts)}." if texts else ""


def _seed_notes(table: pd.DataFrame) -> list[str]:
    out = ["A seed fixes training prompts, all noise, and evaluation noise, the same for every method."]
    if table["n_seeds"].nunique() > 1:
        out.append(
            "Means are over each row's own seeds: compare rows of unlike numbers by their differences, of shared seeds alone."
        )
    if (fewest := table["n_seeds"].min()) < 5:
        out.append(f"{fewest} seeds show that training works and which rewards move; they cannot rank methods.")
    return out
