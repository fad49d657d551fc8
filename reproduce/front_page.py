"""The part of README.md that is made from published rows: the headline table and its verdict, and which gates hold.

`python -m reproduce.all --render` writes it between two marks.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from eval.markup import Grid, interval, markdown_table, number
from eval.tables import said
from otca.files import write_atomic
from reproduce.gate import GATES

START, END = "<!-- headline -->\n", "\n<!-- /headline -->"
BEFORE_TABLES = "Before a table is made, the task's five gates must hold ([results/gates](results/gates)):"
TABLES = {"image": "table1", "video": "table2"}
"""The table that each modality's numbers are from."""
ROWS = ("base", "uniform_grpo", "static_multi_reward", "otca", "static_multi_reward@2steps", "value_head")


def write_front_page(readme: Path, results: Path) -> None:
    """Replace what is between the marks."""
    before, rest = readme.read_text(encoding="utf-8").split(START)
    write_atomic(readme, before + START + front_page(results) + END + rest.split(END)[1])


def front_page(results: Path) -> str:
    """Markdown: the headline of the tables of the `cpu` tier that are there, one sentence a modality, and one on the gates."""
    paths = {modality: results / name / "cpu" / "table.csv" for modality, name in TABLES.items()}
    parts = {modality: pd.read_csv(path) for modality, path in paths.items() if path.is_file()}
    verdicts = [f"{modality.capitalize()}s: {said(part, 'accuracy')}" for modality, part in parts.items()]
    gates = "\n".join(gates_said(modality, results / "gates" / f"{modality}.json") for modality in TABLES)
    table = [markdown_table(headline(parts))] if parts else []
    grid = results / TABLES["image"] / "cpu" / "grid.png"
    picture = [f"![Samples of the same prompts and noise by method]({grid.as_posix()})"] if grid.is_file() else []
    return "\n\n".join([*picture, *table, *verdicts, f"{BEFORE_TABLES}\n{gates}"])


def headline(parts: dict[str, pd.DataFrame]) -> Grid:
    """Held-out accuracy and the evaluations to the target, six methods down, modalities across."""
    grid: Grid = {"Method": list(ROWS)}
    for modality, part in parts.items():
        rows = {metric: of.set_index("method").reindex(ROWS) for metric, of in part.groupby("metric")}
        accuracy, target, reached = (rows[name] for name in ("accuracy", "evaluations_to_target", "reached_target"))
        grid[f"{modality}: accuracy"] = [number(value, 3) for value in accuracy["mean"]]
        differences = [number(r.diff, 3) + interval(r.diff_low, r.diff_high, 3) for r in accuracy.itertuples()]
        grid[f"{modality}: Δ from static [95 % CI]"] = differences
        spent = zip(target["mean"] / 1000, reached["mean"])
        grid[f"{modality}: evaluations to target (k)"] = [("≥ " if share < 1 else "") + number(v, 0) for v, share in spent]
    return grid


def gates_said(modality: str, path: Path) -> str:
    """Which gates of a task hold, fail, or are not measured, a line of a list."""
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    groups: dict[str, list[str]] = {}
    for gate in GATES:
        own = [entry["holds"] for name, entry in entries.items() if name.startswith(f"{gate}/")]
        groups.setdefault(("hold" if all(own) else "fail") if own else "not measured", []).append(gate)
    states = "; ".join(f"{', '.join(gates)} {state}" for state, gates in groups.items())
    return f"- `otca-{modality}-v2`: {'all hold' if list(groups) == ['hold'] else states}."
