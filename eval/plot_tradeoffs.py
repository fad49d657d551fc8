"""What runs ended with: trained rewards against each other, and their gain against the held-out metric (reward hacking)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from eval.plots import interval_words, legend, method_styles, panels, write_figure
from eval.stats import bootstrap_interval
from eval.store import Store
from eval.tables import UNTRAINED, metric_of


def of_seeds(rows: pd.DataFrame, metric: str, methods: Sequence[str]) -> dict[str, pd.Series]:
    """method → one metric, indexed by seed; ``rows`` as in metrics.csv."""
    chosen = rows[rows["metric"] == metric].groupby("method", sort=False)
    found = {str(method): arm.set_index("seed")["value"].sort_index() for method, arm in chosen}
    return {method: found[method] for method in methods if method in found}


def pareto_front(values_MK: np.ndarray) -> np.ndarray:
    """Which of M points no other beats, (M,) bool: is as good in all K objectives and better in one; higher is better."""
    at_least = (values_MK[None] >= values_MK[:, None]).all(axis=2)
    better = (values_MK[None] > values_MK[:, None]).any(axis=2)
    return ~(at_least & better).any(axis=1)


def reward_gains(rows: pd.DataFrame, deviations: Mapping[str, float], methods: Sequence[str]) -> dict[str, pd.Series]:
    """method → mean over the trained rewards of (method − untrained model) / deviation, by the seeds that both have.

    deviations: trained reward → the standard deviation of the untrained model's items, so that rewards of any unit add up.
    """
    values = {name: of_seeds(rows, name, methods) for name in deviations}
    trained = [m for m in methods if m != UNTRAINED and all(m in of and UNTRAINED in of for of in values.values())]
    gains = {m: [(of[m] - of[UNTRAINED]).dropna() / deviations[name] for name, of in values.items()] for m in trained}
    return {method: sum(of_reward) / len(of_reward) for method, of_reward in gains.items()}


def trade_offs(store: Store, methods: Sequence[str], metric: str, path_stem: Path) -> None:
    """A panel a pair of trained rewards, and one of their gain against ``metric``; ``<path_stem>.png`` and ``.svg``.

    What the rows do not have (a second reward, the metric, the untrained model) leaves its panel out; nothing left draws nothing.
    """
    rows = store.metrics
    names = [name for name in rows["metric"].unique() if not metric_of(name).held_out]
    drawn = [
        (f"{metric_of(x).label} →", f"{metric_of(y).label} →", of_seeds(rows, x, methods), of_seeds(rows, y, methods))
        for x, y in combinations(names, 2)
    ]
    held_out, untrained = of_seeds(rows, metric, methods), store.items[store.items["method"] == UNTRAINED]
    deviations = {name: float(d) for name, d in untrained[names].std(ddof=0).items() if d > 0} if len(untrained) else {}
    if deviations and UNTRAINED in held_out:
        sign = -1 if metric_of(metric).higher_is_better is False else 1
        gain = {m: sign * (value - held_out[UNTRAINED]).dropna() for m, value in held_out.items() if m != UNTRAINED}
        words = "gain of trained rewards\n(standard deviations) →", f"gain in {metric_of(metric).label.lower()} →"
        drawn.append((*words, reward_gains(rows, deviations, methods), gain))
    if not drawn:
        return
    styles, counts = method_styles(methods), store.runs.groupby("method")["seed"].count()
    with panels(len(drawn), 2.7) as (figure, axes):
        for axis, (x_label, y_label, x_of, y_of) in zip(axes, drawn):
            both = [method for method in x_of if method in y_of]
            if x_label.startswith("gain"):
                axis.axhline(0, color="#000000", linewidth=0.8)
                axis.axvline(0, color="#000000", linewidth=0.8)
            else:
                _front(axis, np.array([[x_of[m].mean(), y_of[m].mean()] for m in both]))
            for method in both:
                _cross(axis, x_of[method], y_of[method], styles[method], method)
            axis.set(xlabel=x_label, ylabel=y_label)
            axis.locator_params(nbins=5)
        legend(figure, axes[0])
        caption = (
            f"Evaluation samples; up and right is better. Cross: mean over seeds and {interval_words(counts[both])}; dots: seeds."
        )
        caption += (
            " Ringed and joined: means that no other method's beats in both. Last panel, if of gains: rewards that rise while"
        )
        write_figure(figure, path_stem, f"{caption} {metric_of(metric).label.lower()} falls are a sign of reward hacking.")


def _front(axis: Axes, mean_M2: np.ndarray) -> None:
    front_M2 = mean_M2[pareto_front(mean_M2)]
    axis.plot(*front_M2[np.argsort(front_M2[:, 0])].T, color="#000000", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    axis.plot(*front_M2.T, "o", color="#000000", markersize=13, markerfacecolor="none", markeredgewidth=0.8, zorder=1)


def _cross(axis: Axes, x_N: pd.Series, y_N: pd.Series, style: tuple[str, str, str], label: str) -> None:
    """A marker at the means with the interval of each, and a dot a seed that both have."""
    color, _, marker = style
    both = x_N.index.intersection(y_N.index)
    axis.plot(x_N[both], y_N[both], ".", color=color, markersize=4, alpha=0.6, zorder=2)
    axis.plot(bootstrap_interval(x_N), [y_N.mean()] * 2, color=color, linewidth=1.2, zorder=3)
    axis.plot([x_N.mean()] * 2, bootstrap_interval(y_N), color=color, linewidth=1.2, zorder=3)
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    axis.plot(x_N.mean(), y_N.mean(), marker, color=color, markersize=8, linestyle="none", label=label, zorder=4, **edge)
