"""Figures from the published rows: learning curves, dots, trade-offs, and where credit went."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from eval.plots import COLORS, PAGE, STYLE, legend, method_styles, panels, write_figure
from eval.stats import bootstrap_interval
from eval.store import KEY, Store
from eval.tables import TARGET_GAIN, UNTRAINED, heading, metric_of

RESAMPLES = 2_000  # bootstrap resamples of a band, the same at every point
MOST_DRAWN = 60  # iterations that a credit map shows one by one: of more, the mean of every n


def interval_words(counts: Collection[int]) -> str:
    """What a bootstrap interval over so many seeds is, in every caption: of 2 or 3 it runs from the lowest to the highest."""
    few = sorted(set(counts) & {2, 3})
    said = [f"lowest to highest of {' or '.join(map(str, few))} seeds"] if few else []
    said += [f"95 % bootstrap interval of the interquartile mean{' of more' if few else ''}"] if max(counts) > 3 else []
    return ", ".join([*said, *(["none with one seed"] if min(counts) < 2 else [])])


def learning_curves(store: Store, methods: Sequence[str], path_stem: Path, shown: Sequence[tuple[str, str]]) -> None:
    """One panel a (metric on validation prompts, what was spent: a column of `SPENT`), one line a method, bands over seeds.

    Panels whose metric was not followed are left out; nothing left draws nothing. Seconds are of the runs on the hardware that
    most of them have.
    """
    rows = store.curves[store.curves["method"].isin(methods)]
    shown = [(metric, spent) for metric, spent in shown if metric in rows and len(rows)]
    if not shown:
        return
    machine = store.runs["hardware"].mode()
    alike = rows.merge(store.runs.loc[store.runs["hardware"].isin(machine[:1]), KEY], on=KEY)
    styles, counts = method_styles([m for m in methods if m in set(rows["method"])]), rows.groupby("method")["seed"].nunique()
    with panels(len(shown), 3.6 if len(shown) == 1 else 2.6) as (figure, axes):
        for axis, (metric, spent) in zip(axes, shown):
            for i, (method, style) in enumerate(styles.items()):
                of_method = (alike if spent == "seconds" else rows).query("method == @method")
                _curve(axis, curve_of(of_method, metric, spent), style | {"label": method}, i / len(styles))
            if metric == "accuracy":
                target = store.curves.loc[store.curves["iteration"] == 0, metric].mean() + TARGET_GAIN
                axis.axhline(target, color="#6E6E6E", linewidth=0.8, linestyle=":")
            title = heading(metric).replace("Accuracy", "Held-out accuracy")
            axis.set(title=title, xlabel=f"training {spent.replace('_', ' ')}", xlim=(0, None))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes[0].set_ylabel("validation prompts" if "accuracy" in rows else "training samples")
        legend(figure, axes[0])
        caption = f"Line: mean over seeds; band: {interval_words(counts)}."
        caption += f" Dotted: target, {TARGET_GAIN:g} above the untrained model." if "accuracy" in dict(shown) else ""
        caption += f" Seconds: runs on {machine.iloc[0]}." if "seconds" in dict(shown).values() and len(machine) else ""
        write_figure(figure, path_stem, caption)


def curve_of(rows: pd.DataFrame, metric: str, spent: str) -> pd.DataFrame:
    """One method's mean and interval over seeds (``mean, low, high``) at the iterations all seeds have, by what was spent."""
    values = rows.pivot(index="iteration", columns="seed", values=metric).dropna()
    cost = rows.pivot(index="iteration", columns="seed", values=spent).loc[values.index].mean(axis=1)
    bands = [bootstrap_interval(value_N, resamples=RESAMPLES) for value_N in values.to_numpy()]
    curve = pd.DataFrame(bands, columns=["low", "high"], index=cost.to_numpy(float))
    return curve.assign(mean=values.mean(axis=1).to_numpy())


def _curve(axis: Axes, curve: pd.DataFrame, style: dict[str, str], offset: float) -> None:
    """A line with five markers, shifted by a share of their distance so that those of several lines stay apart, and its band."""
    every = max(1, len(curve) // 5)
    axis.plot(curve.index, curve["mean"], **style, markevery=(int(offset * every), every))
    axis.fill_between(curve.index, curve["low"], curve["high"], color=style["color"], alpha=0.12, linewidth=0)


def dot_plot(table: pd.DataFrame, metrics: Sequence[str], path_stem: Path) -> None:
    """One panel a metric of `build_table`'s rows, one row a method: mean and interval, the baseline's as a band."""
    metrics = [metric for metric in metrics if (table["metric"] == metric).any()]
    methods, baseline = list(table["method"].unique()), table["baseline"].iloc[0]
    with panels(len(metrics), 0.2 * len(methods) + 0.6, sharey=True) as (figure, axes):
        for axis, metric in zip(axes, metrics):
            rows = table[table["metric"] == metric].set_index("method").reindex(methods)
            axis.axvspan(rows["ci_low"][baseline], rows["ci_high"][baseline], color=COLORS["base"], alpha=0.18, linewidth=0)
            axis.axvline(rows["mean"][baseline], color=COLORS["base"], linewidth=1.0)
            axis.hlines(range(len(methods)), rows["ci_low"], rows["ci_high"], color=COLORS["static_multi_reward"], linewidth=1.4)
            axis.plot(rows["mean"], range(len(methods)), "o", color=COLORS["static_multi_reward"])
            axis.set_title(heading(metric), fontsize=STYLE["font.size"])
            axis.xaxis.get_major_locator().set_params(nbins=3, steps=[1, 2, 5, 10])  # labels of five characters stay apart
            axis.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)  # longer ones are put as multiples of 10ⁿ
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].set_ylim(len(methods) - 0.4, -0.6)
        caption = f"Dot: mean over seeds; line: {interval_words(table['n_seeds'])}. Grey line and band: those of {baseline}."
        write_figure(figure, path_stem, caption)


def trade_offs(store: Store, methods: Sequence[str], metric: str, path_stem: Path) -> None:
    """A panel a pair of trained rewards, and one of their gain over the untrained model against that of a held-out metric.

    What the rows lack (a second reward, the metric, the untrained model) leaves its panel out; nothing left draws nothing.
    """
    wide = store.metrics.pivot(index=KEY, columns="metric", values="value")
    wide = wide.loc[[key for key in wide.index if key[0] in methods]]
    rewards = [name for name in store.metrics["metric"].unique() if not metric_of(name).held_out]
    drawn = [(f"{metric_of(x).label} →", f"{metric_of(y).label} →", wide[[x, y]]) for x, y in combinations(rewards, 2)]
    if metric in wide and UNTRAINED in wide.index.get_level_values("method"):
        deviation = store.items.loc[store.items["method"] == UNTRAINED, rewards].std(ddof=0)
        label = metric_of(metric).label.lower()
        words = "gain of trained rewards\n(standard deviations) →", f"gain in {label} →"
        drawn.append((*words, gains(wide, deviation[deviation > 0], metric)))
    if not drawn:
        return
    counts = store.runs[store.runs["method"].isin(methods)].groupby("method")["seed"].count()
    with panels(len(drawn), 2.7) as (figure, axes):
        for axis, (x_label, y_label, points) in zip(axes, drawn):
            for method, style in method_styles(methods).items():
                if method in points.index.get_level_values("method"):
                    _cross(axis, points.loc[method].dropna(), style | {"label": method})
            axis.set(xlabel=x_label, ylabel=y_label)
            axis.locator_params(nbins=5)
        legend(figure, axes[0])
        caption = f"Test samples; up and right is better. Cross: mean over seeds and {interval_words(counts)}; dots: seeds."
        write_figure(figure, path_stem, f"{caption} Rewards that rise while a held-out metric falls show reward hacking.")


def gains(wide: pd.DataFrame, deviation: pd.Series, metric: str) -> pd.DataFrame:
    """Each run's gain over the untrained model of its seed: mean of the trained rewards in their deviations, and the metric's.

    wide: one row a (method, seed), one column a metric. A gain is positive where the metric gets better.
    """
    trained = wide.drop(index=UNTRAINED, level="method")
    start = wide.loc[UNTRAINED].reindex(trained.index.get_level_values("seed")).set_axis(trained.index)
    sign = -1 if metric_of(metric).higher_is_better is False else 1
    rise = (trained - start).dropna(subset=[metric])
    return pd.DataFrame({"rewards": (rise[deviation.index] / deviation).mean(axis=1), metric: sign * rise[metric]})


def _cross(axis: Axes, points: pd.DataFrame, style: dict[str, str]) -> None:
    """A marker at the means of two columns with the interval of each, and a dot a seed."""
    (x, y), color = points.mean(), style["color"]
    axis.plot(*points.to_numpy().T, ".", color=color, alpha=0.6, zorder=2)
    axis.plot(bootstrap_interval(points.iloc[:, 0]), [y, y], color=color, linewidth=1.2, zorder=3)
    axis.plot([x, x], bootstrap_interval(points.iloc[:, 1]), color=color, linewidth=1.2, zorder=3)
    axis.plot(x, y, **style | {"linestyle": "none"}, markersize=8, markeredgecolor="white", markeredgewidth=0.6, zorder=4)


def credit_shares(rows: pd.DataFrame, names: Sequence[str]) -> np.ndarray | None:
    """Size of credit of each step and objective over training, (I, T, K), as a multiple of an equal share.

    rows: of one method, of train.csv.gz, with columns ``credit_step_<t>_<name>``: mean |credit · advantage| over samples. In each
    iteration of each seed the sizes are divided by their mean over objectives and the steps that were ever trained, then averaged
    over seeds. NaN at steps never trained. None where there are no such columns (methods of one summed reward).
    """
    steps = sorted({int(m[1]) for column in rows if (m := re.match(r"credit_step_(\d+)_", column))})
    wanted = [f"credit_step_{t}_{name}" for t in steps for name in names]
    if not wanted or not set(wanted) <= set(rows) or rows[wanted].isna().all(axis=None):
        return None
    sizes = rows.dropna(subset=["samples"]).set_index([*KEY[1:], "iteration"])[wanted].astype(float)  # but the last validation
    trained_T = (sizes > 0).any().to_numpy().reshape(len(steps), -1).any(axis=1)
    sizes.loc[:, np.repeat(~trained_T, len(names))] = np.nan
    shares = sizes.div(sizes.mean(axis=1).where(lambda mean: mean > 0), axis=0)
    return shares.groupby("iteration").mean().to_numpy().reshape(-1, len(steps), len(names))


def credit_maps(store: Store, methods: Sequence[str], path_stem: Path) -> None:
    """One row a method, one map an objective: iterations to the right, steps downward, colour the size of credit."""
    names = [c.removeprefix("reward_") for c in store.train if c.startswith("reward_") and c != "reward_calls"]
    found = {m: credit_shares(store.train[store.train["method"] == m], names) for m in methods}
    shares = {method: share for method, share in found.items() if share is not None}
    if not shares:
        return
    top = max(1.0, *(float(np.nanmax(share)) for share in shares.values()))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(PAGE, 1.0 * len(shares) + 1.3), layout="constrained")
        axes = figure.subplots(len(shares), len(names), squeeze=False, sharex=True, sharey=True)
        for row, (method, share_ITK) in zip(axes, shares.items()):
            each = -(-len(share_ITK) // MOST_DRAWN)
            binned = np.stack([share_ITK[i : i + each].mean(axis=0) for i in range(0, len(share_ITK), each)])
            extent = (-0.5, len(binned) * each - 0.5, binned.shape[1] - 0.5, -0.5)
            for k, axis in enumerate(row):
                look = {"cmap": "cividis", "vmin": 0, "vmax": top, "aspect": "auto", "interpolation": "nearest"}
                image = axis.imshow(binned[:, :, k].T, extent=extent, **look)
                axis.locator_params(integer=True, nbins=5)
            row[0].set_ylabel(method.replace("_", "_\n").replace("@", "\n@") + "\nstep", rotation=0, ha="right", va="center")
        for k, name in enumerate(names):
            axes[0, k].set_title(metric_of(name).label)
            axes[-1, k].set_xlabel("iteration")
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01).set_label("size of credit (1 = an equal share)")
        caption = "Downward: denoising steps (0: the noisiest); blank: never trained. Colour: mean |credit × advantage| over"
        write_figure(figure, path_stem, f"{caption} samples and seeds. Left out: methods that sum the rewards first.")


def credit_profiles(
    profiles: Mapping[str, np.ndarray], sigma_T: np.ndarray, names: Sequence[str], path_stem: Path, caption: str = ""
) -> None:
    """One panel an objective: size of credit over the noise level, which falls from left to right, as sampling runs.

    profiles: "truth" and methods → (R, T, K) root mean squares scaled to 1 over the steps, row 0 the estimate, the others
    bootstrap resamples, from which the band of the truth is drawn.
    """
    styles = method_styles([method for method in profiles if method != "truth"])
    with panels(len(names), 2.6, sharey=True) as (figure, axes):
        for k, (axis, name) in enumerate(zip(axes, names)):
            truth_RT = profiles["truth"][:, :, k]
            axis.fill_between(sigma_T, *np.nanpercentile(truth_RT[1:], [2.5, 97.5], axis=0), color="#000000", alpha=0.18)
            axis.plot(sigma_T, truth_RT[0], color="#000000", linewidth=2.4, label="truth")
            for i, (method, style) in enumerate(styles.items()):
                axis.plot(sigma_T, profiles[method][0, :, k], **style, markevery=(i % 3, 3), label=method)
            axis.invert_xaxis()
            axis.set(title=name, xlabel="noise level σ of the step's state")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("size of credit (RMS over steps = 1)")
        legend(figure, axes[0])
        write_figure(figure, path_stem, caption)
