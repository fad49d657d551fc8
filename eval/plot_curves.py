"""Learning curves: held-out accuracy and rewards on validation prompts, over samples, network evaluations or seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

from eval.plots import interval_words, legend, method_styles, panels, write_figure
from eval.stats import bootstrap_interval
from eval.store import KEY, SPENT, Store
from eval.tables import TARGET_GAIN, UNTRAINED, heading

RESAMPLES = 2_000
"""Bootstrap resamples of a band, the same at every point."""
SMOOTHING = 5
"""Iterations of the centred moving average of a run that was not validated on the way: its training samples' rewards."""


@dataclass(frozen=True)
class Curve:
    """One column over training: what was spent (X), mean over seeds (X), its interval (X); N seeds."""

    spent: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int


def followed(store: Store) -> tuple[pd.DataFrame, list[str]]:
    """The rows of `Store.curves` and their value columns; without validation the training samples' rewards, smoothed."""
    rows = store.curves
    if len(rows):
        return rows, sorted((c for c in rows if c not in (*KEY, "iteration", *SPENT)), key=lambda c: c != "accuracy")
    names = [c for c in store.train if c.startswith("reward_") and c != "reward_calls"]
    smoothed = store.train.groupby(KEY)[names].transform(lambda of: of.rolling(SMOOTHING, center=True, min_periods=1).mean())
    rows = pd.concat([store.train[[*KEY, "iteration", *SPENT]], smoothed], axis=1)
    return rows.rename(columns=lambda c: c.removeprefix("reward_") if c in names else c), [
        c.removeprefix("reward_") for c in names
    ]


def curve_of(rows: pd.DataFrame, column: str, spent: str) -> Curve:
    """Mean of a column over seeds and interval of its interquartile mean, at the iterations that all seeds have; one method."""
    values = rows.pivot(index="iteration", columns="seed", values=column).dropna()
    cost = rows.pivot(index="iteration", columns="seed", values=spent).loc[values.index].mean(axis=1)
    bands = np.array([bootstrap_interval(value_N, resamples=RESAMPLES) for value_N in values.to_numpy()])
    return Curve(cost.to_numpy(float), values.mean(axis=1).to_numpy(), bands[:, 0], bands[:, 1], values.shape[1])


def learning_curves(store: Store, methods: Sequence[str], path_stem: Path, spent: str = "samples") -> None:
    """One panel for the accuracy and one a reward, a line a method; writes ``<path_stem>.png`` and ``.svg``.

    ``spent``: a column of `SPENT`. Seconds are of the runs on the hardware that most of them have.
    """
    rows, names = followed(store)
    rows = rows[rows["method"].isin(methods)]
    note = ""
    if spent == "seconds":
        machine = store.runs["hardware"].mode().iloc[0]
        alike = store.runs.loc[store.runs["hardware"] == machine, KEY]
        rows, note = rows.merge(alike, on=KEY), f" Runs on {machine}."
    shown = [method for method in methods if method != UNTRAINED and (rows["method"] == method).any()]
    styles, seeds = method_styles(methods), set()
    with panels(len(names), 2.6) as (figure, axes):
        for axis, name in zip(axes, names):
            for i, method in enumerate(shown):
                color, line, marker = styles[method]
                curve = curve_of(rows[rows["method"] == method], name, spent)
                seeds.add(curve.seeds)
                every = max(1, len(curve.mean) // 5)
                mark = {"marker": marker, "markersize": 4, "markevery": (i * every // len(shown), every)}
                axis.plot(curve.spent, curve.mean, color=color, linestyle=line, label=method, **mark)
                axis.fill_between(curve.spent, curve.low, curve.high, color=color, alpha=0.1, linewidth=0)
            if name == "accuracy":
                axis.axhline(
                    rows.loc[rows["iteration"] == 0, name].mean() + TARGET_GAIN, color="#6E6E6E", linewidth=0.8, linestyle=":"
                )
            axis.set(title=heading(name), xlabel=spent.replace("_", " "))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[0].set_ylabel("validation prompts" if len(store.curves) else "training samples")
        legend(figure, axes[0])
        caption = f"Line: mean over seeds; band: {interval_words(seeds)}."
        caption += f" Dotted: target, {TARGET_GAIN:g} above the untrained model." if "accuracy" in names else ""
        write_figure(figure, path_stem, caption + note)
