"""Figures of what runs ended with, one value a seed: trade-offs of objectives, rewards against accuracy, spread over skills.

Numbers first (`pareto_front`, `reward_gains`, `performance_profile`), drawings after.
``rows`` are those of `eval.tables.collect`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.columns import METRICS
from eval.plots import COLORS, MOST_ABREAST, PAGE, STYLE, interval_words, method_styles, write_figure
from eval.stats import CONFIDENCE, bootstrap_interval
from eval.tables import UNTRAINED

RESAMPLES = 2_000
"""Bootstrap resamples of a profile's band."""

QUADRANTS = {
    (1, 1): "rewards and accuracy rise",
    (1, -1): "rewards rise, accuracy falls:\na sign of reward hacking",
    (-1, 1): "accuracy rises, rewards fall",
    (-1, -1): "rewards and accuracy fall",
}
"""What a place in the plot of rewards against accuracy means: (sign of x, sign of y) → words."""


# ------------------------------------------------------------------------------------------------------------- numbers


def of_seeds(rows: pd.DataFrame, metric: str) -> dict[str, pd.Series]:
    """method → one metric, indexed by seed."""
    chosen = rows[rows["metric"] == metric].groupby("method", sort=False)
    return {str(method): arm.set_index("seed")["value"].sort_index() for method, arm in chosen}


def pareto_front(values_MK: np.ndarray) -> np.ndarray:
    """Which of M points is on the front, (M,) bool: no other is as good in all K objectives and better in one.

    Higher is better in each.
    """
    at_least = (values_MK[None] >= values_MK[:, None]).all(axis=2)
    better = (values_MK[None] > values_MK[:, None]).any(axis=2)
    return ~(at_least & better).any(axis=1)


def reward_gains(rows: pd.DataFrame, deviations: Mapping[str, float]) -> dict[str, pd.Series]:
    """method → mean over the trained rewards of (method − untrained model) / deviation, indexed by the seeds that both have.

    deviations: trained reward → the standard deviation of the untrained model's items, so that rewards of any unit add up.
    """
    gains: dict[str, list[pd.Series]] = {}
    for name, deviation in deviations.items():
        values = of_seeds(rows, name)
        for method in values:
            if method != UNTRAINED:
                gains.setdefault(method, []).append((values[method] - values[UNTRAINED]).dropna() / deviation)
    return {method: sum(of_reward) / len(of_reward) for method, of_reward in gains.items()}


def metric_gains(rows: pd.DataFrame, metric: str) -> dict[str, pd.Series]:
    """method → its metric less the untrained model's, indexed by the seeds that both have; above 0 is better."""
    values, sign = of_seeds(rows, metric), -1 if METRICS[metric].higher_is_better is False else 1
    return {m: sign * (value - values[UNTRAINED]).dropna() for m, value in values.items() if m != UNTRAINED}


def performance_profile(score_NM: np.ndarray, tau_X: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of the N·M scores above each τ, with the lower and upper end of its 95 % bootstrap interval; three (X,) arrays.

    The run-score distribution of Agarwal et al. 2021 (rliable). Whole runs are drawn, jointly over the M skills, where rliable
    draws the runs of each skill apart: the skills of one run are correlated. The interval is NaN with one run.
    """
    above_NX = (score_NM[:, :, None] > tau_X).mean(axis=1)
    if len(score_NM) < 2:
        return above_NX.mean(axis=0), np.full(len(tau_X), np.nan), np.full(len(tau_X), np.nan)
    drawn = np.random.default_rng(seed).integers(0, len(score_NM), (RESAMPLES, len(score_NM)))
    tails = (1 - CONFIDENCE) / 2
    low_X, high_X = np.quantile(above_NX[drawn].mean(axis=1), [tails, 1 - tails], axis=0)
    return above_NX.mean(axis=0), low_X, high_X


# ------------------------------------------------------------------------------------------------------------ drawings


def trade_offs(rows: pd.DataFrame, names: Sequence[str], path_stem: Path) -> None:
    """One panel a pair of trained objectives, the untrained model among the methods; ``<path_stem>.png`` and ``.svg``.

    A thin line joins the methods that no other one dominates in the mean of the two.
    """
    pairs = list(combinations(names, 2))
    values = {name: of_seeds(rows, name) for name in names}
    methods = [m for m in values[names[0]] if all(m in of_method for of_method in values.values())]
    styles = method_styles(methods)
    columns = min(len(pairs), MOST_ABREAST)
    lines = -(-len(pairs) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.7 * lines + 1.0), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08)
        axes = figure.subplots(lines, columns, squeeze=False).flatten()
        for axis, (x, y) in zip(axes, pairs):
            mean_M2 = np.array([[values[name][m].mean() for name in (x, y)] for m in methods])
            front_M2 = mean_M2[pareto_front(mean_M2)]
            order = np.argsort(front_M2[:, 0])
            axis.plot(*front_M2[order].T, color="#000000", linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axis.plot(*front_M2.T, "o", color="#000000", markersize=13, markerfacecolor="none", markeredgewidth=0.8, zorder=1)
            for method in methods:
                _cross(axis, values[x][method], values[y][method], styles[method], method)
            axis.set(xlabel=f"{METRICS[x].label} →", ylabel=f"{METRICS[y].label} →")
            axis.locator_params(nbins=5)
        for axis in axes[len(pairs) :]:
            axis.set_visible(False)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(methods), 4))
        caption = f"Trained rewards of the evaluation samples; up and right is better. {_cross_words(values[names[0]], methods)}"
        write_figure(figure, path_stem, f"{caption} Ringed and joined: methods whose means no other one beats in both.")


def rewards_against(rows: pd.DataFrame, metric: str, deviations: Mapping[str, float], path_stem: Path) -> None:
    """Gain of the trained rewards to the right, gain of a held-out metric upward, one cross a method; PNG and SVG.

    deviations: as in `reward_gains`.
    """
    x_of, y_of = reward_gains(rows, deviations), metric_gains(rows, metric)
    methods = [method for method in x_of if method in y_of]
    styles, label = method_styles(methods), _plain(metric)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
        axis = figure.subplots()
        axis.axhline(0, color="#000000", linewidth=0.8)
        axis.axvline(0, color="#000000", linewidth=0.8)
        for method in methods:
            _cross(axis, x_of[method], y_of[method], styles[method], method)
        for set_limits, of in ((axis.set_xlim, x_of), (axis.set_ylim, y_of)):
            set_limits(*_around_zero(np.concatenate([of[method].to_numpy() for method in methods])))
        for (right, up), words in QUADRANTS.items():
            axis.annotate(
                words.replace("accuracy", label),
                (0.99 if right > 0 else 0.01, 0.98 if up > 0 else 0.02),
                xycoords="axes fraction",
                ha="right" if right > 0 else "left",
                va="top" if up > 0 else "bottom",
                fontsize=8,
                color="#555555",
            )
        axis.set(xlabel="gain of the trained rewards over the untrained model (standard deviations) →")
        axis.set(ylabel=f"gain in {label} over the untrained model →")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=min(len(methods), 4))
        caption = f"Trained: {', '.join(_plain(name) for name in deviations)}, each in standard deviations of the"
        caption += f" untrained model's items, averaged. Held out: {label}. {_cross_words(x_of, methods)}"
        write_figure(figure, path_stem, caption)


def skill_profiles(rows: pd.DataFrame, metric: str, path_stem: Path) -> None:
    """One panel a method: share of its (seed, skill) pairs whose metric exceeds τ, the untrained model's in grey; PNG and SVG."""
    table = rows[rows["metric"].str.startswith(f"{metric}/")]
    scores = {str(m): arm.pivot(index="seed", columns="metric", values="value") for m, arm in table.groupby("method", sort=False)}
    methods = [method for method in scores if method != UNTRAINED]
    styles = method_styles(scores)
    columns = min(len(methods), MOST_ABREAST)
    lines = -(-len(methods) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.0 * lines + 0.9), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for axis, method in zip(axes, methods):
            for shown in [UNTRAINED, method] if UNTRAINED in scores else [method]:
                color = COLORS[UNTRAINED] if shown == UNTRAINED else styles[method][0]
                tau_X = np.unique([0.0, *scores[shown].to_numpy().ravel(), 1.0])  # it changes nowhere else
                share_X, low_X, high_X = performance_profile(scores[shown].to_numpy(), tau_X)
                axis.fill_between(tau_X, low_X, high_X, step="post", color=color, alpha=0.2, linewidth=0)
                axis.step(tau_X, share_X, where="post", color=color, linestyle=":" if shown == UNTRAINED else "-", label=shown)
            axis.set(title=method, xlim=(0, 1), ylim=(0, 1.02))
        for axis in axes[len(methods) :]:
            axis.set_visible(False)
        label, skills = _plain(metric), table["metric"].nunique()
        figure.supylabel("share of (seed, skill) pairs above τ", fontsize=9)
        for axis in axes[: len(methods)][-columns:]:
            axis.set_xlabel(f"{label} in a skill, τ →")
            axis.tick_params(labelbottom=True)
        caption = (
            f"Performance profiles over {skills} skills; higher is better. Dotted grey: {UNTRAINED}. Band, over whole seeds: "
            f"{interval_words([len(of_seed) for of_seed in scores.values()], 'share')}; too narrow with fewer than about 5."
        )
        write_figure(figure, path_stem, caption)


def _cross(axis: Axes, x_N: pd.Series, y_N: pd.Series, style: tuple[str, str, str], label: str) -> None:
    """A marker at the means with the interval of each, and a dot a seed that both have."""
    color, _, marker = style
    mean = (x_N.mean(), y_N.mean())
    both = x_N.index.intersection(y_N.index)
    axis.plot(x_N[both], y_N[both], ".", color=color, markersize=4, alpha=0.6, zorder=2)
    (x_low, x_high), (y_low, y_high) = bootstrap_interval(x_N), bootstrap_interval(y_N)
    axis.plot([x_low, x_high], [mean[1]] * 2, color=color, linewidth=1.2, zorder=3)
    axis.plot([mean[0]] * 2, [y_low, y_high], color=color, linewidth=1.2, zorder=3)
    edge = {"markeredgecolor": "white", "markeredgewidth": 0.6}
    axis.plot(*mean, marker, color=color, markersize=8, linestyle="none", label=label, zorder=4, **edge)


def _cross_words(values: Mapping[str, pd.Series], methods: Sequence[str]) -> str:
    """The sentence of a caption on what `_cross` draws of these methods' seeds."""
    return f"Cross: mean over seeds and {interval_words([len(values[method]) for method in methods])}; dots: seeds."


def _around_zero(values: np.ndarray) -> tuple[float, float]:
    """Limits that hold all values, with room for words at both ends and at least a quarter of the axis on either side of 0."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    room = 0.15 * ((high - low) or 1.0)
    return min(low - room, -(high + room) / 3), max(high + room, -(low - room) / 3)


def _plain(metric: str) -> str:
    """A metric's label within a sentence: its first letter small, unless it is an abbreviation."""
    label = METRICS[metric].label
    return label if label[:2].isupper() else label[0].lower() + label[1:]
