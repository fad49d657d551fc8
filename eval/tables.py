"""Tables from published runs: rows of every seed → statistics → table.csv, table.md, table.tex.

    rows = collect(Path("results"), "image", "cpu", ["base", "static_multi_reward", "otca"])
    table = build_table(rows, "static_multi_reward", EQUAL_CALLS, "image")
    write_table(table, Path("results/table1/cpu"), "Table 1", notes=[], winners=clear_winners(rows, EQUAL_CALLS))

Nothing here depends on the clock, the machine or the order of files: the same rows give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from eval.columns import METRICS
from eval.markup import Grid, interval, latex_table, markdown, markdown_table, number, one_line
from eval.stats import PairedDifference, bootstrap_interval, holm, iqm, paired_difference, smallest_detectable
from otca.errors import InputError
from otca.files import write_atomic
from otca.runs import RunSpec

BASELINE, UNTRAINED = "static_multi_reward", "base"
EQUAL_CALLS = "equal iterations and reward calls"
EQUAL_EVALUATIONS = "equal network evaluations"
MAKE_RUN = (
    "make it with `python -m reproduce.method {name} --modality {modality} --tier {tier}`, and publish it with "
    "`python -m reproduce.publish --modality {modality} --tier {tier}`"
)
ROW_COLUMNS = ("method", "seed", "metric", "value", "network_evaluations", "reward_calls", "hash")
TABLE_COLUMNS = (
    *("modality", "method", "metric", "held_out", "n_seeds", "iqm", "mean", "ci_low", "ci_high", "baseline", "budget", "diff"),
    *("diff_low", "diff_high", "p_paired", "prob_improvement", "network_evaluations", "reward_calls"),
)
DIFFERENCE_HEADS = ("Difference", "95 % interval", "p (Holm)", "Pairs", "P(improvement)", "Smallest detectable", "Shows")
SIGNIFICANT = 0.05
"""Of p after Holm's adjustment; intervals have 95 %."""

CAPTION = (
    "Mean over seeds; in brackets the 95 % percentile bootstrap interval of the interquartile mean (of 2 to 4 seeds: lowest to "
    "highest). ↑ higher is better, ↓ lower is. Bold: best of the rows at this budget, the untrained model included, and the "
    "paired 95 % interval of its difference from the runner-up among them excludes 0. Worst trained objective and hypervolume "
    "(product, reference point 0) are of the means. Holm's adjustment counts the rivals, not the untrained model. Shows: what "
    'the interval of the difference says; "unadjusted": p is 0.05 or more after the adjustment. What is scored is decoded once: '
    "decodes in training are reward calls over the number of rewards."
)


# -------------------------------------------------------------------------------------------------------- rows from runs
def collect(results_root: Path, modality: str, tier: str, methods: Sequence[str]) -> pd.DataFrame:
    """Read every seed of ``results_root/<modality>/<tier>/<method>/seed<k>/``; one row (`ROW_COLUMNS`) a method, seed, metric.

    Metric columns of scores.csv.gz are averaged over items; judge_correct becomes ``accuracy`` and ``accuracy/<skill>``;
    set-level metrics come from sets.csv. A ``method`` may carry a variant (``otca@rho0``).
    Raises FileNotFoundError if a method has no run or a run lacks a file (naming the folder and the command that makes it),
    InputError if a manifest belongs elsewhere or a value is blank or not finite.
    """
    arms = []
    for method in methods:
        folder = results_root / modality / tier / method
        seeds = sorted(int(path.name[4:]) for path in folder.glob("seed*") if path.name[4:].isdigit())
        if not seeds:
            raise FileNotFoundError(f"no run in {folder / 'seed0'}; {MAKE_RUN.format(name=method, modality=modality, tier=tier)}")
        arms += [RunSpec(modality, tier, method, seed) for seed in seeds]
    return read_runs(results_root, arms)


def read_runs(results_root: Path, arms: Sequence[RunSpec]) -> pd.DataFrame:
    """The rows of these runs alone, in their order; an arm's ``method`` carries its variant. Raises as `collect` does."""
    rows = []
    for arm in arms:
        rows += run_rows(results_root / arm.path, arm)
    return pd.DataFrame(rows, columns=list(ROW_COLUMNS))


def run_rows(run: Path, arm: RunSpec) -> list[tuple]:
    """Rows (`ROW_COLUMNS`) of one run, one a metric; errors as of `collect`."""
    for name in ("manifest.json", "scores.csv.gz", "sets.csv"):
        if not (run / name).is_file():
            raise FileNotFoundError(
                f"run {run} lacks {name}; {MAKE_RUN.format(name=arm.name, modality=arm.modality, tier=arm.tier)}"
            )
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    claimed = [str(manifest["method"]).partition("@")[0], *(manifest[key] for key in ("seed", "modality", "tier"))]
    if claimed != [arm.method.partition("@")[0], arm.seed, arm.modality, arm.tier]:
        raise InputError(f"{run / 'manifest.json'} describes another run: method, seed, modality, tier = {claimed}")
    cost = (int(manifest["budget"]["network_evaluations"]), int(manifest["budget"]["reward_calls"]))
    return [(arm.method, arm.seed, metric, value, *cost, manifest["hash"]) for metric, value in run_values(run).items()]


def run_items(run: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The items of an evaluated run, row by row: which (prompt_id, sample, skill, text), and their metrics, float64."""
    scores, names = pd.read_csv(run / "scores.csv.gz"), ["prompt_id", "sample", "skill", "text"]
    items = scores.drop(columns=names).select_dtypes(["number", "bool"]).astype("float64")
    return scores[names], items.rename(columns={"judge_correct": "accuracy"})


def run_values(run: Path) -> dict[str, float]:
    """Every metric of an evaluated run, from its scores.csv.gz (means over items) and sets.csv.

    Raises InputError if a value is blank or not finite.
    """
    which, items = run_items(run)
    values = items.drop(columns="accuracy", errors="ignore").mean(skipna=False).to_dict()
    if "accuracy" in items:
        values["accuracy"] = items["accuracy"].mean(skipna=False)
        values |= items["accuracy"].groupby(which["skill"]).mean().add_prefix("accuracy/").to_dict()
    sets = pd.read_csv(run / "sets.csv")
    values |= dict(zip(sets["metric"], sets["value"].astype("float64")))
    bad = [metric for metric, value in values.items() if not np.isfinite(value)]
    if bad:
        raise InputError(f"{run}: {', '.join(bad)} has blank or non-finite values; score the run again")
    return values


# ------------------------------------------------------------------------------------------------------- table from rows
def build_table(
    rows: pd.DataFrame, baseline: str = BASELINE, budget_label: str = EQUAL_CALLS, modality: str = "image"
) -> pd.DataFrame:
    """Statistics of every metric and method, one row each (`TABLE_COLUMNS`); metrics that no row has are left out.

    iqm, ci_low, ci_high: interquartile mean over seeds and its bootstrap interval. diff … prob_improvement compare with
    the baseline on the seeds both have (blank for the baseline): diff = method − baseline in the metric's unit, with its
    paired t interval; prob_improvement in [0, 1], above ½ = the method is *better*, also where lower is better (blank
    where neither is). p_paired is
    Holm-adjusted over the rivals within a metric; the untrained model is compared too, unadjusted, and is no rival.
    Raises InputError if the baseline lacks a metric, on seeds that are not nested, an unknown metric or a repeated row.
    """
    out = []
    for metric, arms in _arms(rows).items():
        if baseline not in arms:
            raise InputError(f"baseline {baseline!r} has no {metric!r}; arms with it: {', '.join(arms)}")
        compared = {m: _compare(value_N, arms[baseline], metric) for m, value_N in arms.items() if m != baseline}
        rivals = adjusted_over(compared)
        p_adjusted = dict(zip(rivals, holm([compared[method].p for method in rivals])))
        for method, value_N in arms.items():
            low, high = bootstrap_interval(value_N)
            head = (modality, method, metric, METRICS[metric].held_out, len(value_N), iqm(value_N), value_N.mean(), low, high)
            difference = (np.nan,) * 5
            if method in compared:
                d = compared[method]
                better = {True: d.prob_improvement, False: 1 - d.prob_improvement, None: np.nan}[METRICS[metric].higher_is_better]
                difference = (d.diff, d.low, d.high, p_adjusted.get(method, d.p), better)
            cost = rows.loc[rows["method"] == method, ["network_evaluations", "reward_calls"]].mean().round().astype(int)
            out.append((*head, baseline, budget_label, *difference, *cost))
    return pd.DataFrame(out, columns=list(TABLE_COLUMNS))


def adjusted_over(methods: Iterable[str]) -> list[str]:
    """Those of the compared methods that Holm's adjustment counts: not the untrained model."""
    return [method for method in methods if method.partition("@")[0] != UNTRAINED]


def clear_winners(rows: pd.DataFrame, budget_label: str, modality: str = "image") -> dict[tuple[str, str, str], str]:
    """(modality, budget, metric) → the best method in the mean, where it beats the runner-up beyond the paired 95 % interval."""
    winners = {}
    for metric, arms in _arms(rows).items():
        if METRICS[metric].higher_is_better is None:
            continue
        sign = 1 if METRICS[metric].higher_is_better else -1
        best, *others = sorted(arms, key=lambda method: -sign * arms[method].mean())
        if others and _compare(sign * arms[best], sign * arms[others[0]], metric).low > 0:
            winners[modality, budget_label, metric] = best
    return winners


def _arms(rows: pd.DataFrame) -> dict[str, dict[str, pd.Series]]:
    """metric → method → values indexed by seed, in the order of METRICS and of the rows."""
    unknown = sorted(set(rows["metric"]) - set(METRICS))
    if unknown:
        raise InputError(f"unknown metric {', '.join(unknown)}; add a line to METRICS in eval/columns.py")
    if rows.duplicated(["method", "seed", "metric"]).any():
        raise InputError(f"repeated rows: {rows[rows.duplicated(['method', 'seed', 'metric'])].iloc[0].to_dict()}")
    groups = {metric: group.groupby("method", sort=False) for metric, group in rows.groupby("metric")}
    return {
        metric: {str(method): arm.set_index("seed")["value"].sort_index() for method, arm in groups[metric]}
        for metric in METRICS
        if metric in groups
    }


def _compare(a: pd.Series, b: pd.Series, metric: str) -> PairedDifference:
    """Difference of two arms on their common seeds; the seeds of one must contain those of the other."""
    common = a.index.intersection(b.index)
    if len(common) < min(len(a), len(b)):
        raise InputError(f"{metric}: arms ran with different seeds, {list(a.index)} and {list(b.index)}; run the same ones")
    return paired_difference(a[common].to_numpy(), b[common].to_numpy())


# ------------------------------------------------------------------------------------------------------- text from table
def table_csv(table: pd.DataFrame) -> str:
    """Text of table.csv: six significant digits."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def write_table(
    table: pd.DataFrame,
    folder: Path,
    title: str,
    notes: list[str],
    winners: Mapping[tuple[str, str, str], str] | None = None,
    primary: str = "accuracy",
) -> None:
    """Write table.csv (all rows), table.md and table.tex into ``folder``, each atomically, fixed formats, UTF-8, LF.

    ``table`` may hold several media and budgets (concatenated `build_table` results): each gets its own section. ``winners``
    (from `clear_winners`) are set in bold. ``primary`` gets the table of differences. ``title`` and ``notes`` are plain text.
    """
    md, tex = [f"# {markdown(title)}"], [f"% {line}" for line in (one_line(title), "generated by eval/tables.py; needs booktabs")]
    for (modality, budget), part in table.groupby(["modality", "budget"], sort=False):
        baseline = part["baseline"].iloc[0]
        bold = {metric: method for (*at, metric), method in (winners or {}).items() if at == [modality, budget]}
        md += [f"## {markdown(modality.capitalize())}"] if table["modality"].nunique() > 1 else []
        headline = _grid(part, [m for m in METRICS if "/" not in m], bold) | _summary(part)
        md += [f"Budget: {markdown(budget)}. Baseline: {markdown(baseline)}.", markdown_table(headline), CAPTION]
        skills = _grid(part, [m for m in METRICS if m.startswith(f"{primary}/")], bold)
        if len(skills) > 1:
            md += [f"## {METRICS[primary].label} by skill", markdown_table(skills)]
        if (part["metric"] == primary).any():
            md += [
                f"## {METRICS[primary].label}: difference from {markdown(baseline)}",
                markdown_table(differences(part, primary)),
            ]
        tex += [f"% {one_line(modality)}; budget: {one_line(budget)}; baseline: {one_line(baseline)}", latex_table(headline)]
    md += ["\n".join(f"- {markdown(note)}" for note in notes)] if notes else []
    tex += [f"% {one_line(note)}" for note in notes]
    for name, text in (
        ("table.csv", table_csv(table)),
        ("table.md", "\n\n".join(md) + "\n"),
        ("table.tex", "\n".join(tex) + "\n"),
    ):
        write_atomic(folder / name, text)


def _grid(part: pd.DataFrame, metrics: list[str], bold: dict[str, str]) -> Grid:
    """One row a method, one column a metric that the table has: mean [interval]."""
    methods = list(part["method"].unique())
    grid: Grid = {"Method": [(method, False) for method in methods]}
    for metric in [m for m in metrics if (part["metric"] == m).any()]:
        style, head = METRICS[metric], heading(metric)
        of_method = part[part["metric"] == metric].set_index("method").reindex(methods)
        values = zip(of_method["mean"], of_method["ci_low"], of_method["ci_high"])
        texts = [number(mean, style.decimals) + interval(low, high, style.decimals) for mean, low, high in values]
        grid[head] = [(text, bold.get(metric) == method) for text, method in zip(texts, methods)]
    return grid


def heading(metric: str) -> str:
    """A metric's label, with an arrow to its better side and a mark if it is trained on."""
    style = METRICS[metric]
    arrow = {True: " ↑", False: " ↓", None: ""}[style.higher_is_better]
    return f"{style.label}{arrow}{'' if style.held_out else ' (trained)'}"


def _summary(part: pd.DataFrame) -> Grid:
    """Worst trained objective, hypervolume and costs of each method."""
    first = part.groupby("method", sort=False).first()
    trained = part[~part["held_out"]].pivot(index="method", columns="metric", values="mean").reindex(first.index)
    trained = trained.loc[trained.notna().all(axis=1) & bool(trained.shape[1])]
    cells = {
        "Worst trained objective": {m: f"{min(v):.3f} ({METRICS[v.idxmin()].label.lower()})" for m, v in trained.iterrows()},
        "Hypervolume": {m: f"{np.prod(v.clip(lower=0)):.3f}" for m, v in trained.iterrows()},
        "Seeds": first["n_seeds"].to_dict(),
        "Network evaluations": first["network_evaluations"].map("{:,}".format).to_dict(),
        "Reward calls": first["reward_calls"].map("{:,}".format).to_dict(),
    }
    return {head: [(str(of_method.get(m, "–")), False) for m in first.index] for head, of_method in cells.items()}


def differences(part: pd.DataFrame, metric: str) -> Grid:
    """Differences of one metric from the baseline; pairs are the seeds both arms have."""
    of_metric, baseline = part[part["metric"] == metric].set_index("method"), part["baseline"].iloc[0]
    rows = of_metric.drop(index=baseline)
    pairs = rows["n_seeds"].clip(upper=of_metric["n_seeds"][baseline])
    return {"Method": [(method, False) for method in rows.index]} | difference_columns(rows, pairs)


def difference_columns(rows: pd.DataFrame, pairs: Iterable[int]) -> Grid:
    """Columns `DIFFERENCE_HEADS` of rows of `build_table` that have a difference, each of so many pairs of seeds."""
    cells = [difference_cells(row, n) for (_, row), n in zip(rows.iterrows(), pairs)]
    return {head: [(row[i], False) for row in cells] for i, head in enumerate(DIFFERENCE_HEADS)}


def difference_cells(row: pd.Series, pairs: int) -> tuple[str, ...]:
    """Texts under `DIFFERENCE_HEADS` for a row of `build_table` that has a difference, of so many pairs of seeds."""
    metric = row["metric"]
    decimals = METRICS[metric].decimals
    detectable = number(smallest_detectable((row["diff_high"] - row["diff_low"]) / 2, pairs), decimals)
    p = "< 0.001" if row["p_paired"] < 0.001 else number(row["p_paired"], 3)
    spread = interval(row["diff_low"], row["diff_high"], decimals).strip() or "–"
    side, holds = _shown(row, metric)
    shows = side if holds else f"{side}, unadjusted"
    return number(row["diff"], decimals), spread, p, str(pairs), number(row["prob_improvement"], 2), detectable, shows


def verdict(table: pd.DataFrame, metric: str, method: str) -> str:
    """What the interval of a method's difference says, in one sentence: better, worse, different or not distinguishable.

    table: rows of `build_table`, of one modality and budget; ``method`` is not their baseline.
    """
    of_metric = table[table["metric"] == metric].set_index("method")
    row = of_metric.loc[method]
    baseline, seeds = row["baseline"], min(row["n_seeds"], of_metric["n_seeds"][row["baseline"]])
    side, holds = _shown(row, metric)
    said = {
        "not distinguishable": f"not distinguishable from {baseline} with {seeds} seeds",
        "different": f"different from {baseline} ({seeds} seeds)",
    }.get(side, f"{side} than {baseline} ({seeds} seeds)")
    adjusted = "" if holds else f", though not after Holm's adjustment (p = {number(row['p_paired'], 3)})"
    return f"{METRICS[metric].label}: {method} is {said}{adjusted}."


def _shown(row: pd.Series, metric: str) -> tuple[str, bool]:
    """What a row of `build_table` shows of its difference: a side where the interval excludes 0, and whether p leaves it."""
    if not (row["diff_low"] > 0 or row["diff_high"] < 0):
        return "not distinguishable", True
    higher_is_better = METRICS[metric].higher_is_better
    side = "different" if higher_is_better is None else "better" if (row["diff"] > 0) == higher_is_better else "worse"
    return side, bool(row["p_paired"] < SIGNIFICANT)
