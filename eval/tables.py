"""Tables from the published rows: statistics of every method and metric → table.csv, table.md, table.tex, in one direction.

    table = build_table(Store(Path("results"), "image", "cpu"), ["base", "static_multi_reward", "otca"])
    write_table(table, Path("results/table1/cpu"), "Table 1: image", notes=[])

Nothing here depends on the clock, the machine or the order of files: the same rows give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eval.columns import METRICS, Metric
from eval.markup import Grid, interval, latex_table, markdown, markdown_table, number, one_line
from eval.stats import PairedDifference, bootstrap_interval, first_reach, holm, iqm, paired_difference, smallest_detectable
from eval.store import Store
from otca.errors import InputError
from otca.files import write_atomic

BASELINE, UNTRAINED = "static_multi_reward", "base"
EQUAL_CALLS = "equal iterations and reward calls"
EQUAL_EVALUATIONS = "equal network evaluations"
TARGET_GAIN = 0.2
"""The target accuracy is the untrained model's and this."""
SIGNIFICANT = 0.05
"""Of p after Holm's adjustment; intervals have 95 %."""
TOLERANCE = 0.01 + 1e-9
"""Relative difference up to which two costs count as equal: 1 %, and what rounding makes of it."""
MOST_COLUMNS = 8
"""Columns of a table for people; the CSV has all."""
TABLE_COLUMNS = (
    *("modality", "method", "metric", "held_out", "n_seeds", "mean", "iqm", "ci_low", "ci_high", "baseline", "budget"),
    *("diff", "diff_low", "diff_high", "p_holm", "prob_improvement", "samples_to_target", "evaluations_to_target"),
    *("network_evaluations", "reward_calls"),
)
CAPTION = (
    "Mean over seeds; in brackets the 95 % percentile bootstrap interval of the interquartile mean (of 2 or 3 seeds: lowest to "
    "highest). Difference: paired over seeds, with its 95 % t interval; p after Holm's adjustment over the rivals; P(better): "
    "share of paired seeds that are better. To target: until the accuracy on validation prompts is the untrained model's + "
    f"{TARGET_GAIN:g}, runs that never reach it counted with the baseline's whole budget (≥). ↑ higher is better, ↓ lower is. "
    "Bold: best at this budget, and its paired 95 % interval against the runner-up excludes 0."
)


def metric_of(name: str) -> Metric:
    """How a metric is printed; one without a line in eval/columns.py is held out, and higher is better."""
    return METRICS.get(name) or Metric(name.replace("_", " ").replace("accuracy/", "").capitalize())


# ------------------------------------------------------------------------------------------------------------ numbers
def build_table(
    store: Store, methods: Sequence[str], metrics: Sequence[str] = (), baseline: str = BASELINE, budget: str = EQUAL_CALLS
) -> pd.DataFrame:
    """Statistics of every metric (empty: all) and method that has runs, one row each (`TABLE_COLUMNS`).

    diff … prob_improvement compare with the baseline on the seeds that both have, in the metric's unit (blank for the baseline);
    prob_improvement above ½ means better, also where lower is better. p_holm is adjusted over the rivals within a metric; the
    untrained model is compared too, unadjusted. Raises InputError if the baseline has no runs, or seeds are not nested.
    """
    present = [method for method in methods if method in store.methods]
    if baseline not in present:
        raise InputError(f"{store.folder} has no runs of the baseline {baseline!r}; make and publish them")
    values, runs = store.metrics, store.runs.set_index("method")
    wanted = [m for m in (metrics or dict.fromkeys([*METRICS, *values["metric"]])) if (values["metric"] == m).any()]
    reached = to_target(store, present, baseline)
    out = []
    for metric in wanted:
        of_metric = values[values["metric"] == metric]
        arms = {m: of_metric[of_metric["method"] == m].set_index("seed")["value"].sort_index() for m in present}
        arms = {method: value for method, value in arms.items() if len(value)}
        if baseline not in arms:
            raise InputError(f"baseline {baseline!r} has no {metric!r}; methods with it: {', '.join(arms)}")
        compared = {m: _compare(value, arms[baseline], metric) for m, value in arms.items() if m != baseline}
        rivals = [method for method in compared if method != UNTRAINED]
        adjusted = dict(zip(rivals, holm([compared[method].p for method in rivals])))
        up = metric_of(metric).higher_is_better
        for method, value_N in arms.items():
            difference = (np.nan,) * 5
            if d := compared.get(method):
                better = {True: d.prob_improvement, False: 1 - d.prob_improvement, None: np.nan}[up]
                difference = (d.diff, d.low, d.high, adjusted.get(method, d.p), better)
            head = (store.modality, method, metric, metric_of(metric).held_out, len(value_N), value_N.mean(), iqm(value_N))
            cost = runs.loc[[method], ["network_evaluations", "reward_calls"]].mean().round().astype(int)
            spent = reached.loc[method] if method in reached.index else (np.nan, np.nan)
            out.append((*head, *bootstrap_interval(value_N), baseline, budget, *difference, *spent, *cost))
    return pd.DataFrame(out, columns=list(TABLE_COLUMNS))


def to_target(store: Store, methods: Sequence[str], baseline: str = BASELINE) -> pd.DataFrame:
    """Mean samples and network evaluations until validation accuracy is the untrained model's + `TARGET_GAIN`, by method.

    A run that never reaches it counts with the baseline's whole budget, and later crossings count with that too (restricted
    mean).
    """
    curves, columns = store.curves, ["samples", "network_evaluations"]
    if "accuracy" not in curves or baseline not in set(curves["method"]):
        return pd.DataFrame(columns=columns)
    target = curves.loc[curves["iteration"] == 0, "accuracy"].mean() + TARGET_GAIN
    horizon = curves[curves["method"] == baseline].groupby("seed")[columns].max().mean()
    rows = {}
    for method, of_method in curves[curves["method"].isin(methods)].groupby("method", sort=False):
        runs = [run for _, run in of_method.groupby("seed")]
        spent = {c: [min(first_reach(run[c], run["accuracy"], target), horizon[c]) for run in runs] for c in columns}
        rows[method] = {c: float(np.mean(value)) for c, value in spent.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def off_budget(part: pd.DataFrame) -> pd.DataFrame:
    """Trained methods of one modality that are not at the table's budget: what each spent for each 1 of the baseline."""
    columns = ["network_evaluations"] if part["budget"].iloc[0] == EQUAL_EVALUATIONS else ["network_evaluations", "reward_calls"]
    spent = part.groupby("method", sort=False)[columns].first()
    ratios = spent[(spent > 0).any(axis=1)] / spent.loc[part["baseline"].iloc[0]]
    return ratios[(ratios - 1).abs().max(axis=1) > TOLERANCE]


def winners(store: Store, table: pd.DataFrame) -> dict[str, str]:
    """Metric → the best method at the budget, where the paired 95 % interval against the runner-up excludes 0."""
    out, left_out = {}, set(off_budget(table).index)
    for metric, part in table.groupby("metric", sort=False):
        up = metric_of(metric).higher_is_better
        order = part[~part["method"].isin(left_out)].sort_values("mean", ascending=up is False, kind="stable")["method"]
        if up is None or len(order) < 2:
            continue
        best, second = (
            store.metrics[(store.metrics["metric"] == metric) & (store.metrics["method"] == m)].set_index("seed")["value"]
            for m in order[:2]
        )
        d = _compare(best, second, metric)
        if (d.low if up else -d.high) > 0:
            out[metric] = order.iloc[0]
    return out


def _compare(a: pd.Series, b: pd.Series, metric: str) -> PairedDifference:
    """Difference of two methods on their common seeds; the seeds of one must contain those of the other."""
    common = a.index.intersection(b.index)
    if len(common) < min(len(a), len(b)):
        raise InputError(f"{metric}: methods ran with different seeds, {list(a.index)} and {list(b.index)}; run the same ones")
    return paired_difference(a[common].to_numpy(), b[common].to_numpy())


# --------------------------------------------------------------------------------------------------------------- texts
def write_table(
    table: pd.DataFrame,
    folder: Path,
    title: str,
    notes: Sequence[str],
    best: dict[str, dict[str, str]] | None = None,
    primary="accuracy",
) -> None:
    """Write table.csv (all rows), table.md and table.tex; fixed formats, UTF-8, LF.

    ``table`` may hold several modalities (concatenated `build_table` results), each of which gets its own section. ``best``:
    modality → `winners`. Differences and the first sentence are of ``primary``, or the first held-out metric where it is lacking.
    """
    md, tex = [f"# {markdown(title)}"], [f"% {one_line(title)}", "% generated by eval/tables.py; needs booktabs"]
    for modality, part in table.groupby("modality", sort=False):
        bold, metric = (best or {}).get(modality, {}), primary_of(part, primary)
        md += [f"## {modality.capitalize()}"] if table["modality"].nunique() > 1 else []
        md += [
            f"Budget: {part['budget'].iloc[0]}. Baseline: {markdown(part['baseline'].iloc[0])}. {markdown(said(part, metric))}"
        ]
        others = [m for m in part["metric"].unique() if m != metric and "/" not in m]
        grids = [headline(part, metric, bold), *_chunks(part, others, bold)]
        md += [markdown_table(grid) for grid in grids]
        skills = _chunks(part, [m for m in part["metric"].unique() if m.startswith(f"{metric}/")], bold)
        md += [f"{metric_of(metric).label} by skill:", *map(markdown_table, skills)] if skills else []
        md += [markdown_table(_costs(part, metric))]
        tex += [f"% {modality}; budget: {part['budget'].iloc[0]}", *map(latex_table, grids)]
    md += [CAPTION, *(["\n".join(f"- {markdown(note)}" for note in notes)] if notes else [])]
    texts = {"table.csv": table_csv(table), "table.md": "\n\n".join(md) + "\n", "table.tex": "\n".join(tex) + "\n"}
    for name, text in texts.items():
        write_atomic(folder / name, text)


def table_csv(table: pd.DataFrame) -> str:
    """Text of table.csv: six significant digits."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def headline(part: pd.DataFrame, metric: str, bold: dict[str, str]) -> Grid:
    """The primary metric of one modality: value, difference, p, P(better), and what the target took."""
    rows, style = part[part["metric"] == metric].set_index("method"), metric_of(metric)
    horizon = rows.loc[rows["baseline"].iloc[0], "network_evaluations"]
    cells = {
        "Difference": [
            number(r.diff, style.decimals) + interval(r.diff_low, r.diff_high, style.decimals) for r in rows.itertuples()
        ],
        "p (Holm)": ["< 0.001" if p < 0.001 else number(p, 3) for p in rows["p_holm"]],
        "P(better)": [number(value, 2) for value in rows["prob_improvement"]],
        "Samples to target": [_count(v) for v in rows["samples_to_target"]],
        "Evaluations to target": [("≥ " if v >= horizon else "") + _count(v) for v in rows["evaluations_to_target"]],
        "Seeds": [str(n) for n in rows["n_seeds"]],
    }
    columns = {head: [(text, False) for text in texts] for head, texts in cells.items()}
    if rows["samples_to_target"].isna().all():
        del columns["Samples to target"], columns["Evaluations to target"]
    return _values(part, [metric], bold) | columns


def heading(metric: str) -> str:
    """A metric's label, with an arrow to its better side and a mark if it is trained on."""
    style = metric_of(metric)
    arrow = {True: " ↑", False: " ↓", None: ""}[style.higher_is_better]
    return f"{style.label}{arrow}{'' if style.held_out else ' (trained)'}"


def said(part: pd.DataFrame, metric: str) -> str:
    """What the differences of one metric show, in one sentence."""
    rows, label = part[(part["metric"] == metric) & (part["method"] != part["baseline"])], metric_of(metric).label
    up = metric_of(metric).higher_is_better
    groups: dict[str, list[str]] = {}
    for row in rows.itertuples():
        side = ("better" if (row.diff > 0) == up else "worse") if up is not None else "different"
        known = row.p_holm < SIGNIFICANT and (row.diff_low > 0 or row.diff_high < 0)
        words = f"significantly {side} than" if known else "not significantly different from"
        groups.setdefault(words.replace("different than", "different from"), []).append(row.method)
    texts = [
        f"{', '.join(methods)} {'is' if len(methods) == 1 else 'are'} {words} the baseline" for words, methods in groups.items()
    ]
    return f"{label}: {'; '.join(texts)}." if texts else ""


def primary_of(part: pd.DataFrame, primary: str) -> str:
    """The metric to compare by: the table's own, or the first held-out one that its runs have."""
    held_out = part.loc[part["held_out"], "metric"]
    return primary if (part["metric"] == primary).any() else (held_out if len(held_out) else part["metric"]).iloc[0]


def _chunks(part: pd.DataFrame, metrics: list[str], bold: dict[str, str]) -> list[Grid]:
    """Values of further metrics in tables of at most `MOST_COLUMNS`; worst trained reward and hypervolume beside the trained."""
    out, trained = [], [m for m in metrics if not metric_of(m).held_out]
    if trained:
        out.append(_values(part, trained[: MOST_COLUMNS - 3], bold) | _summary(part, trained))
        metrics = [m for m in metrics if m not in trained[: MOST_COLUMNS - 3]]
    step = MOST_COLUMNS - 1
    return out + [_values(part, metrics[first : first + step], bold) for first in range(0, len(metrics), step)]


def _values(part: pd.DataFrame, metrics: Sequence[str], bold: dict[str, str]) -> Grid:
    """One row a method, one column a metric: mean [interval]."""
    methods = list(part["method"].unique())
    grid: Grid = {"Method": [(method, False) for method in methods]}
    for metric in metrics:
        rows, digits = part[part["metric"] == metric].set_index("method").reindex(methods), metric_of(metric).decimals
        texts = [
            number(r.mean, digits) + interval(r.ci_low, r.ci_high, digits)
            for r in rows.rename(columns={"mean": "mean"}).itertuples()
        ]
        grid[heading(metric)] = [(text, bold.get(metric) == method) for text, method in zip(texts, methods)]
    return grid


def _summary(part: pd.DataFrame, trained: Sequence[str]) -> Grid:
    """Worst trained reward and hypervolume (product of means, reference point 0) of each method."""
    means = (
        part[part["metric"].isin(trained)].pivot(index="method", columns="metric", values="mean").reindex(part["method"].unique())
    )
    worst = [f"{v.min():.3f} ({metric_of(v.idxmin()).label.lower()})" if v.notna().all() else "–" for _, v in means.iterrows()]
    volume = [number(v.clip(lower=0).prod(skipna=False), 3) for _, v in means.iterrows()]
    return {"Worst trained": [(text, False) for text in worst], "Hypervolume": [(text, False) for text in volume]}


def _costs(part: pd.DataFrame, metric: str) -> Grid:
    """What each method spent, and the smallest difference that its seeds would have found with 80 % power."""
    rows = part[part["metric"] == metric].set_index("method")
    pairs = rows["n_seeds"].clip(upper=rows["n_seeds"][rows["baseline"].iloc[0]])
    half = (rows["diff_high"] - rows["diff_low"]) / 2
    found = [number(smallest_detectable(h, n), metric_of(metric).decimals) for h, n in zip(half, pairs)]
    return {
        "Method": [(method, False) for method in rows.index],
        "Network evaluations": [(_count(v), False) for v in rows["network_evaluations"]],
        "Reward calls": [(_count(v), False) for v in rows["reward_calls"]],
        "Smallest detectable difference": [(text, False) for text in found],
    }


def _count(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:,.0f}"
