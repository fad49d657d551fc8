"""Figures of training, from train.csv: rewards over what was spent, and where the credit went step by step.

Numbers first (`curve_of`, `credit_shares`), drawings after.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from eval.columns import METRICS
from eval.plots import HANDLE, MOST_ABREAST, PAGE, STYLE, interval_words, method_styles, write_figure
from eval.stats import bootstrap_interval

SMOOTHING = 5
"""Iterations of the centred moving average of a learning curve."""

RESAMPLES = 2_000
"""Bootstrap resamples of a band, the same at every iteration."""

SPENT = {
    "iteration": ("iterations", 1),
    "network_evaluations": ("network evaluations (thousands)", 1_000),
    "seconds": ("seconds of training", 1),
}
"""What a curve may run over: its label and unit. ``seconds`` is no column of train.csv: the caller adds it."""

MOST_BANDS = 5
"""Methods up to which those of 2 or 3 seeds have bands, from the lowest to the highest; more of them would hide the means."""

MOST_DRAWN = 60
"""Iterations that a figure shows one by one: of more, curves show every n-th and credit maps the mean of n."""


@dataclass(frozen=True)
class Curve:
    """A reward over training: what was spent before each iteration (I), mean over N seeds (I), its interval (I)."""

    spent: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


# ------------------------------------------------------------------------------------------------------------- numbers


def curve_of(method: str, of_seed: Sequence[pd.DataFrame], column: str, spent: str = "iteration") -> Curve:
    """Mean of one column over seeds and interval of its interquartile mean, over the iterations that all seeds have reached.

    Each seed is first smoothed by a centred moving average over `SMOOTHING` iterations. The samples of an iteration come from
    weights that the earlier ones paid for: the first point has spent nothing. The band is NaN with one seed, and runs from the
    lowest to the highest of 2 or 3. Raises ValueError if there is no frame, KeyError naming the run and column that is missing.
    """
    if not of_seed:
        raise ValueError(f"learning curves: {method!r} has no run")
    for position, frame in enumerate(of_seed):
        missing = {"iteration", column, spent} - set(frame.columns)
        if missing:
            raise KeyError(f"learning curves: run {position} of {method!r} has no column {', '.join(sorted(missing))}")
    values = _side_by_side(of_seed, column).rolling(SMOOTHING, center=True, min_periods=1).mean()
    after = _side_by_side(of_seed, spent).mean(axis=1).to_numpy(float)
    before = values.index.to_numpy(float) if spent == "iteration" else np.concatenate([[0.0], after[:-1]])
    bands = np.array([bootstrap_interval(value_N, resamples=RESAMPLES) for value_N in values.to_numpy()])
    return Curve(before, values.mean(axis=1).to_numpy(), bands[:, 0], bands[:, 1])


def _side_by_side(of_seed: Sequence[pd.DataFrame], column: str) -> pd.DataFrame:
    """One column of each seed, indexed by the iterations that all seeds have."""
    columns = [frame.set_index("iteration", drop=False)[column].rename(i) for i, frame in enumerate(of_seed)]
    return pd.concat(columns, axis=1, join="inner").sort_index()


def credit_shares(of_seed: Sequence[pd.DataFrame], names: Sequence[str]) -> np.ndarray | None:
    """Size of credit of each step and objective over training, (I, T, K), as a multiple of an equal share.

    From the columns ``credit_step_<t>_<name>``: mean |credit · advantage| over samples. In each iteration of each seed the sizes
    are divided by their mean over the K objectives and the steps that were ever trained, then averaged over seeds. NaN at steps
    that were never trained, and in an iteration without any credit. None where a frame lacks the columns (rows of earlier
    versions, methods of one summed reward).
    """
    steps = sorted({int(m[1]) for frame in of_seed for column in frame if (m := re.match(r"credit_step_(\d+)_", column))})
    wanted = [f"credit_step_{t}_{name}" for t in steps for name in names]
    if not wanted or any(not {"iteration", *wanted} <= set(frame.columns) for frame in of_seed):
        return None
    size_NIX = np.stack([_side_by_side(of_seed, column).to_numpy(float).T for column in wanted], axis=2)
    size_NITK = size_NIX.reshape(*size_NIX.shape[:2], len(steps), len(names))
    trained_T = (size_NITK > 0).any(axis=(0, 1, 3))
    if not trained_T.any():
        return None
    mean_NI = size_NITK[:, :, trained_T].mean(axis=(2, 3), keepdims=True)
    known = (mean_NI > 0) & trained_T[:, None]
    return np.divide(size_NITK, mean_NI, out=np.full_like(size_NITK, np.nan), where=known).mean(axis=0)


def _binned(share_ITK: np.ndarray) -> tuple[np.ndarray, int]:
    """Means over neighbouring iterations, so that at most `MOST_DRAWN` are left, and how many make one."""
    each = -(-len(share_ITK) // MOST_DRAWN)
    return np.stack([share_ITK[first : first + each].mean(axis=0) for first in range(0, len(share_ITK), each)]), each


# ------------------------------------------------------------------------------------------------------------ drawings


def learning_curves(
    frames: Mapping[str, Sequence[pd.DataFrame]],
    names: Sequence[str],
    path_stem: Path,
    spent: str = "iteration",
    among: Collection[str] = (),
    note: str = "",
) -> None:
    """Draw one panel an objective: each method's reward over what was spent; writes ``<path_stem>.png`` and ``.svg``.

    frames: method → the train.csv of each of its seeds, with ``iteration`` and ``reward_<name>`` columns, and ``spent`` (a key of
    `SPENT`). Methods look as they do ``among`` others, of which a figure beside this one may have more; ``note`` ends the
    caption. Raises as `curve_of` does.
    """
    styles, (label, unit) = method_styles({*frames, *among}), SPENT[spent]
    curves = {name: {method: curve_of(method, of, f"reward_{name}", spent) for method, of in frames.items()} for name in names}
    banded, squeezed = _banded(frames), _squeezed([curve.spent[-1] for curve in curves[names[0]].values()])
    columns, alpha = min(len(names), MOST_ABREAST), 0.12 if len(banded) <= MOST_BANDS else 0.07
    rows = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 2.6 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for axis, name in zip(axes, names):
            for i, (method, curve) in enumerate(curves[name].items()):
                color, line, marker = styles[method]
                drawn = np.arange(0, len(curve.mean), -(-len(curve.mean) // MOST_DRAWN))
                x, every = curve.spent[drawn] / unit, max(1, len(drawn) // 5)
                axis.plot(
                    *(x, curve.mean[drawn]),
                    color=color,
                    linestyle=line,
                    label=method,
                    marker=marker,
                    markersize=4,
                    markevery=(i * every // len(frames), every),
                )
                if method in banded:
                    axis.fill_between(x, curve.low[drawn], curve.high[drawn], color=color, alpha=alpha, linewidth=0)
            axis.set(title=f"{_label(name)} ↑", xlabel=f"{label}, log scale" if squeezed else label)
            if squeezed:
                _spread(axis, [curve.spent / unit for curve in curves[name].values()])
            else:
                axis.xaxis.get_major_locator().set_params(integer=True, nbins=5)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        axes[0].set_ylabel("mean reward of\nthe training samples")
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=3, handlelength=HANDLE)
        caption = _curves_caption({method: len(of_seed) for method, of_seed in frames.items()}, banded, spent)
        if squeezed:
            caption += " The horizontal axis is logarithmic beyond the shortest first iteration."
        write_figure(figure, path_stem, f"{caption} {note}".rstrip())


def _banded(frames: Mapping[str, Sequence[pd.DataFrame]]) -> set[str]:
    """Methods whose seeds have a band: those that are bootstrapped, and those of 2 or 3 seeds where few methods are drawn."""
    least = 2 if len(frames) <= MOST_BANDS else 4
    return {method for method, of_seed in frames.items() if len(of_seed) >= least}


def _squeezed(ends: Sequence[float]) -> bool:
    """Whether half of the curves would end within the first third of a linear axis."""
    return bool(np.median(ends) < max(ends) / 3)


def _spread(axis: Axes, spent: Sequence[np.ndarray]) -> None:
    """Make the horizontal axis logarithmic from the smallest amount above 0, with ticks at 0 and at 1 and 3 times 10ⁿ."""
    amounts = np.concatenate(spent)
    first, last = amounts[amounts > 0].min(), amounts.max()
    powers = 10.0 ** np.arange(np.floor(np.log10(first)), np.floor(np.log10(last)) + 1)
    ticks = [0.0, *(tick for power in powers for tick in (power, 3 * power) if first <= tick <= last)]
    axis.set_xscale("symlog", linthresh=first, linscale=0.4)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def _label(name: str) -> str:
    return METRICS[name].label if name in METRICS else name


def _curves_caption(seeds: Mapping[str, int], banded: Collection[str], spent: str) -> str:
    """What lines, bands and the axis are; seeds: of each method, of which the ``banded`` have a band."""
    counts = sorted(set(seeds.values()))
    bare = sorted({count for method, count in seeds.items() if method not in banded})
    said = f"Line: mean over seeds (n = {counts[0]}{f' to {counts[-1]}' if len(counts) > 1 else ''})"
    if banded:
        said += f"; band: {interval_words([seeds[method] for method in banded])}"
    if bare:
        said += f"; no band where n is {' or '.join(map(str, bare))}"
    said += f"; centred averages of {SMOOTHING} iterations."
    if spent == "network_evaluations":
        return f"{said} A forward pass of a sample at one step counts 1, its backward pass 2 more."
    if spent == "seconds":
        return f"{said} Each run's measured time is spread evenly over its iterations."
    return said


def credit_maps(shares: Mapping[str, np.ndarray], names: Sequence[str], path_stem: Path) -> None:
    """One row a method, one map an objective: iterations to the right, steps downward from 0, colour the size of credit.

    shares: method → (I, T, K) of `credit_shares`. Writes ``<path_stem>.png`` and ``.svg``.
    """
    top = max(1.0, *(float(np.nanmax(share)) for share in shares.values()))
    last = max(len(share) for share in shares.values()) - 0.5
    look = {"cmap": "cividis", "vmin": 0, "vmax": top, "aspect": "auto", "interpolation": "nearest"}
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(PAGE, 1.0 * len(shares) + 1.3), layout="constrained")
        axes = figure.subplots(len(shares), len(names), squeeze=False, sharex=True)
        for row, (method, share_ITK) in zip(axes, shares.items()):
            binned_ITK, each = _binned(share_ITK)
            end, below = len(binned_ITK) * each - 0.5, binned_ITK.shape[1] - 0.5
            for k, axis in enumerate(row):
                image = axis.imshow(binned_ITK[:, :, k].T, extent=(-0.5, end, below, -0.5), **look)
                axis.yaxis.get_major_locator().set_params(integer=True, nbins=4, min_n_ticks=1)
                axis.tick_params(labelleft=k == 0)
            beside = {"xy": (0, 0.5), "xycoords": (row[0].set_ylabel("step"), "axes fraction")}
            broken = method.replace("_", "_\n").replace("@", "\n@")
            row[0].annotate(broken, **beside, xytext=(-6, 0), textcoords="offset points", ha="right", va="center")
        for k, name in enumerate(names):
            axes[0, k].set_title(_label(name))
            axes[-1, k].set(xlabel="iteration", xlim=(-0.5, last))
            axes[-1, k].xaxis.get_major_locator().set_params(integer=True, nbins=5)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
        bar.set_label("size of credit (1 = an equal share)")
        caption = (
            "Downward: denoising steps (0: the first, noisiest). Blank across a map: a step that was never trained; blank at "
            "its right: the runs had ended. Colour: mean |credit × advantage| over samples and seeds, as a multiple of what each "
            "trained step and objective would have if all had the same. Left out: methods that sum the rewards before they give "
            "credit."
        )
        write_figure(figure, path_stem, caption)
