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
from eval.evaluate import write_rows
from eval.markup import Bold, Grid, interval, latex_table, markdown, markdown_table, number, one_line
from eval.stats import PairedDifference, bootstrap_interval, first_reach, holm, iqm, paired_difference, smallest_detectable
from eval.store import KEY, Store
from otca.errors import InputError
from otca.files import write_atomic

BASELINE, UNTRAINED = "static_multi_reward", "base"
EQUAL_CALLS = "equal iterations and reward calls"
TARGET_GAIN = 0.2  # the target accuracy is the untrained model's and this
TARGETS = {"samples": "samples_to_target", "network_evaluations": "evaluations_to_target", "seconds": "seconds_to_target"}
"""What is spent → the metric that says how much of it a run needed to reach the target."""
DERIVED = ("worst_trained", "hypervolume", "hacking_gap", *TARGETS.values(), "reached_target")
"""Metrics that every table of accuracies has beside its own."""
SIGNIFICANT = 0.05  # of p after Holm's adjustment; intervals have 95 %
TOLERANCE = 0.01 + 1e-9
"""Relative difference up to which two costs count as equal: 1 %, and what rounding makes of it."""
MOST_COLUMNS = 8  # columns of a table for people; the CSV has all
TABLE_COLUMNS = (
    *("modality", "method", "metric", "held_out", "n_seeds", "mean", "iqm", "ci_low", "ci_high", "baseline", "budget"),
    *("diff", "diff_low", "diff_high", "p_holm", "prob_improvement", "samples_to_target", "evaluations_to_target"),
    *("network_evaluations", "reward_calls"),
)
CAPTION = (
    "Mean over seeds; in brackets the 95 % percentile bootstrap interval of the interquartile mean (of 2 or 3 seeds: lowest to "
    "highest). Difference: paired over seeds, with its 95 % t interval; p after Holm's adjustment over the rivals; P(better): "
    "share of paired seeds that are better. To target: restricted mean of what was spent until the accuracy on validation "
    f"prompts is the untrained model's + {TARGET_GAIN:g}; runs that never reach it count with the baseline's whole budget, which "
    "makes the mean a lower bound (≥). Hacking gap: accuracy by the training verifier less that by the held-out judge. ↑ higher "
    "is better, ↓ lower is. Bold: best at this budget, and its paired 95 % interval against the runner-up excludes 0."
)


def metric_of(name: str) -> Metric:
    """How a metric is printed; one without a line in eval/columns.yaml is held out, and higher is better."""
    return METRICS.get(name) or Metric(name.replace("_", " ").replace("accuracy/", "").capitalize())


def build_table(
    store: Store, methods: Sequence[str], metrics: Sequence[str] = (), baseline: str = BASELINE, budget: str = EQUAL_CALLS
) -> pd.DataFrame:
    """Statistics of every metric (empty: all) and method that has runs, a row each: `TABLE_COLUMNS`, and whether it is ``best``.

    diff … prob_improvement compare with the baseline on the seeds that both have, in the metric's unit (blank for the baseline);
    prob_improvement above ½ means better, also where lower is better. p_holm is adjusted over the rivals within a metric; the
    untrained model is compared too, unadjusted. Raises InputError if the baseline has no runs, or seeds are not nested.
    """
    present = [method for method in methods if method in store.methods]
    if baseline not in present:
        raise InputError(f"{store.folder} has no runs of the baseline {baseline!r}; make and publish them")
    values = pd.concat([store.metrics, derived(store, baseline)])
    values, known = values[values["method"].isin(present)], set(values["metric"])
    asked = [*metrics, *(DERIVED if "accuracy" in metrics else ())] or [*METRICS, *values["metric"]]
    spent = store.runs.groupby("method")[["network_evaluations", "reward_calls"]].mean().round().astype(int)
    out = []
    for metric in dict.fromkeys(name for name in asked if name in known):
        of_metric = values[values["metric"] == metric].set_index("seed")
        arms = {m: of_metric.loc[of_metric["method"] == m, "value"].sort_index() for m in present}
        arms = {method: value_N for method, value_N in arms.items() if len(value_N)}
        if baseline not in arms:
            raise InputError(f"baseline {baseline!r} has no {metric!r}; methods with it: {', '.join(arms)}")
        out.append(_statistics(metric, arms, baseline))
    table = pd.concat(out, ignore_index=True).join(spent, on="method")
    table = table.assign(modality=store.modality, baseline=baseline, budget=budget)
    for column in ("samples_to_target", "evaluations_to_target"):
        table[column] = table["method"].map(table[table["metric"] == column].set_index("method")["mean"]).astype(float)
    return table.assign(best=_best(table, values))[[*TABLE_COLUMNS, "best"]]


def _statistics(metric: str, arms: dict[str, pd.Series], baseline: str) -> pd.DataFrame:
    """Rows of one metric from its values by method, each indexed by seed."""
    compared = {m: _compare(value_N, arms[baseline], metric) for m, value_N in arms.items() if m != baseline}
    rivals = [method for method in compared if method != UNTRAINED]
    adjusted = dict(zip(rivals, holm([compared[method].p for method in rivals])))
    up, rows = metric_of(metric).higher_is_better, []
    for method, value_N in arms.items():
        low, high = bootstrap_interval(value_N)
        row = {"method": method, "metric": metric, "held_out": metric_of(metric).held_out, "n_seeds": len(value_N)}
        row |= {"mean": value_N.mean(), "iqm": iqm(value_N), "ci_low": low, "ci_high": high}
        if d := compared.get(method):
            better = {True: d.prob_improvement, False: 1 - d.prob_improvement, None: np.nan}[up]
            row |= {"diff": d.diff, "diff_low": d.low, "diff_high": d.high, "p_holm": adjusted.get(method, d.p)}
            row |= {"prob_improvement": better}
        rows.append(row)
    return pd.DataFrame(rows, columns=[c for c in TABLE_COLUMNS if c in row or c.startswith(("diff", "p_", "prob_"))])


def derived(store: Store, baseline: str = BASELINE) -> pd.DataFrame:
    """What follows from a run's other numbers, as rows of metrics.csv: the worst trained reward, their product, and `TARGETS`.

    A run that never reaches the target, or later than the baseline's whole budget, counts with that (restricted mean).
    """
    values, curves = store.metrics, store.curves
    trained = values[[not metric_of(name).held_out for name in values["metric"]]]
    reward_NK = trained.pivot(index=KEY, columns="metric", values="value").dropna(axis=1)
    parts = []
    if reward_NK.shape[1] > 1:
        volume = reward_NK.clip(lower=0).prod(axis=1)  # from the reference point 0
        parts.append(pd.DataFrame({"worst_trained": reward_NK.min(axis=1), "hypervolume": volume}))
    if "accuracy" in curves and baseline in set(curves["method"]):
        target = curves.loc[curves["iteration"] == 0, "accuracy"].mean() + TARGET_GAIN
        horizon = curves[curves["method"] == baseline].groupby("seed")[[*TARGETS]].max().mean()
        spent = {key: [first_reach(run[c], run["accuracy"], target) for c in TARGETS] for key, run in curves.groupby(KEY)}
        spent = pd.DataFrame.from_dict(spent, orient="index", columns=[*TARGETS])
        reached = (spent <= horizon)[["samples", "network_evaluations"]].all(axis=1).astype(float)
        parts.append(spent.clip(upper=horizon, axis=1).rename(columns=TARGETS).assign(reached_target=reached))
    if not parts:
        return values.iloc[:0]
    return pd.concat(parts, axis=1).rename_axis(KEY).rename_axis(columns="metric").stack().dropna().rename("value").reset_index()


def off_budget(part: pd.DataFrame) -> pd.DataFrame:
    """Trained methods of one modality that are not at the table's budget: what each spent for each 1 of the baseline."""
    spent = part.groupby("method", sort=False)[["network_evaluations", "reward_calls"]].first()
    ratios = spent[(spent > 0).any(axis=1)] / spent.loc[part["baseline"].iloc[0]]
    return ratios[(ratios - 1).abs().max(axis=1) > TOLERANCE]


def _best(table: pd.DataFrame, values: pd.DataFrame) -> pd.Series:
    """Which rows are the best at the budget, with a paired 95 % interval against the runner-up that excludes 0."""
    best = pd.Series(False, index=table.index)
    for metric, part in table[~table["method"].isin(off_budget(table).index)].groupby("metric", sort=False):
        up = metric_of(metric).higher_is_better
        if up is None or len(part) < 2:
            continue
        order = part.sort_values("mean", ascending=not up, kind="stable")
        of_metric = values[values["metric"] == metric].set_index("seed")
        first, second = (of_metric.loc[of_metric["method"] == method, "value"] for method in order["method"][:2])
        d = _compare(first, second, metric)
        best[order.index[0]] = (d.low if up else -d.high) > 0
    return best


def _compare(a: pd.Series, b: pd.Series, metric: str) -> PairedDifference:
    """Difference of two methods on their common seeds; the seeds of one must contain those of the other."""
    common = a.index.intersection(b.index)
    if len(common) < min(len(a), len(b)):
        raise InputError(f"{metric}: methods ran with different seeds, {list(a.index)} and {list(b.index)}; run the same ones")
    return paired_difference(a[common].to_numpy(), b[common].to_numpy())


def write_table(table: pd.DataFrame, folder: Path, title: str, notes: Sequence[str], primary: str = "accuracy") -> None:
    """Write table.csv (all rows), table.md and table.tex, a section a modality; differences are of ``primary``."""
    md, tex = [f"# {markdown(title)}"], [f"% {one_line(title)}", "% generated by eval/tables.py; needs booktabs"]
    for modality, part in table.groupby("modality", sort=False):
        metric = primary_of(part, primary)
        grids, skills = grids_of(part, metric), [m for m in part["metric"].unique() if m.startswith(f"{metric}/")]
        md += [f"## {modality.capitalize()}"] if table["modality"].nunique() > 1 else []
        baseline, budget = part[["baseline", "budget"]].iloc[0]
        md += [f"Budget: {budget}. Baseline: {markdown(baseline)}. {markdown(said(part, metric))}"]
        md += map(markdown_table, grids)
        md += [f"{metric_of(metric).label} by skill:", *map(markdown_table, _chunks(part, skills))] if skills else []
        md += [markdown_table(_costs(part, metric))]
        tex += [f"% {modality}; budget: {budget}", *map(latex_table, grids)]
    md += [CAPTION, *(["\n".join(f"- {markdown(note)}" for note in notes)] if notes else [])]
    write_rows(table[[*TABLE_COLUMNS]], folder / "table.csv")
    write_atomic(folder / "table.md", "\n\n".join(md) + "\n")
    write_atomic(folder / "table.tex", "\n".join(tex) + "\n")


def grids_of(part: pd.DataFrame, primary: str) -> list[Grid]:
    """The comparison by one metric, the trained rewards with what guards them, then all others but skills."""
    told = (primary, *TARGETS.values(), "reached_target")
    metrics = [m for m in part["metric"].unique() if m not in told and "/" not in m]
    guards = [m for m in ("worst_trained", "hypervolume", "diversity", "hacking_gap") if m in metrics]
    trained = [m for m in metrics if not metric_of(m).held_out and m not in guards][: MOST_COLUMNS - 1 - len(guards)]
    first = [*trained, *guards]
    return [headline(part, primary), *_chunks(part, first), *_chunks(part, [m for m in metrics if m not in first])]


def headline(part: pd.DataFrame, metric: str) -> Grid:
    """One metric of one modality: value, difference, p, P(better), and what the target took."""
    rows, decimals = part[part["metric"] == metric].set_index("method"), metric_of(metric).decimals
    grid = _values(part, [metric])
    grid["Difference"] = [number(r.diff, decimals) + interval(r.diff_low, r.diff_high, decimals) for r in rows.itertuples()]
    grid["p (Holm)"] = ["< 0.001" if p < 0.001 else number(p, 3) for p in rows["p_holm"]]
    grid["P(better)"] = [number(value, 2) for value in rows["prob_improvement"]]
    reached = part[part["metric"] == "reached_target"].set_index("method")["mean"].reindex(rows.index)
    for target in TARGETS.values() if reached.notna().any() else ():
        means = part[part["metric"] == target].set_index("method")["mean"].reindex(rows.index)
        grid[metric_of(target).label] = [("≥ " if share < 1 else "") + number(v, 0) for v, share in zip(means, reached)]
    return grid


def heading(metric: str) -> str:
    """A metric's label, with an arrow to its better side and a mark if it is trained on."""
    style = metric_of(metric)
    arrow = {True: " ↑", False: " ↓", None: ""}[style.higher_is_better]
    return f"{style.label}{arrow}{'' if style.held_out or metric in DERIVED else ' (trained)'}"


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


def _chunks(part: pd.DataFrame, metrics: Sequence[str]) -> list[Grid]:
    """Values of metrics, in tables of at most `MOST_COLUMNS`."""
    step = MOST_COLUMNS - 1
    return [_values(part, metrics[first : first + step]) for first in range(0, len(metrics), step)]


def _values(part: pd.DataFrame, metrics: Sequence[str]) -> Grid:
    """One row a method, one column a metric: mean [interval]."""
    methods = list(part["method"].unique())
    grid: Grid = {"Method": methods}
    for metric in metrics:
        rows, digits = part[part["metric"] == metric].set_index("method").reindex(methods), metric_of(metric).decimals
        texts = [number(r.mean, digits) + interval(r.ci_low, r.ci_high, digits) for r in rows.itertuples()]
        grid[heading(metric)] = [Bold(text) if best else text for text, best in zip(texts, rows["best"].eq(True))]
    return grid


def _costs(part: pd.DataFrame, metric: str) -> Grid:
    """What each method spent, and the smallest difference that its seeds would have found with 80 % power."""
    rows = part[part["metric"] == metric].set_index("method")
    pairs = rows["n_seeds"].clip(upper=rows["n_seeds"][rows["baseline"].iloc[0]])
    half = (rows["diff_high"] - rows["diff_low"]) / 2
    found = [number(smallest_detectable(h, n), metric_of(metric).decimals) for h, n in zip(half, pairs)]
    return {
        "Method": list(rows.index),
        "Seeds": [str(n) for n in rows["n_seeds"]],
        "Network evaluations": [number(v, 0) for v in rows["network_evaluations"]],
        "Reward calls": [number(v, 0) for v in rows["reward_calls"]],
        "Smallest detectable difference": found,
    }
