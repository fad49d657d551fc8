"""Figures of credit: where it went step by step over training, and how its size runs over the noise level beside the truth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from eval.plots import HANDLE, PAGE, STYLE, method_styles, write_figure
from eval.store import Store
from eval.tables import metric_of

MOST_DRAWN = 60
"""Iterations that a map shows one by one: of more, the mean of every n."""


def credit_shares(rows: pd.DataFrame, names: Sequence[str]) -> np.ndarray | None:
    """Size of credit of each step and objective over training, (I, T, K), as a multiple of an equal share.

    rows: of one method, of train.csv.gz, with columns ``credit_step_<t>_<name>``: mean |credit · advantage| over samples. In each
    iteration of each seed the sizes are divided by their mean over objectives and the steps that were ever trained, then averaged
    over seeds. NaN at steps never trained. None where there are no such columns (methods of one summed reward).
    """
    steps = sorted({int(m[1]) for column in rows if (m := re.match(r"credit_step_(\d+)_", column))})
    wanted = [f"credit_step_{t}_{name}" for t in steps for name in names]
    rows = rows.dropna(subset=["samples"])  # what follows the last iteration is its validation alone
    if not wanted or not set(wanted) <= set(rows) or rows[wanted].isna().all(axis=None):
        return None
    of_seed = [of.set_index("iteration")[wanted] for _, of in rows.groupby("seed")]
    common = sorted(set.intersection(*(set(of.index) for of in of_seed)))
    size_NITK = np.stack([of.loc[common].to_numpy(float) for of in of_seed]).reshape(len(of_seed), len(common), len(steps), -1)
    trained_T = (size_NITK > 0).any(axis=(0, 1, 3))
    if not trained_T.any():
        return None
    mean_NI = size_NITK[:, :, trained_T].mean(axis=(2, 3), keepdims=True)
    known = (mean_NI > 0) & trained_T[:, None]
    return np.divide(size_NITK, mean_NI, out=np.full_like(size_NITK, np.nan), where=known).mean(axis=0)


def credit_maps(store: Store, methods: Sequence[str], path_stem: Path) -> None:
    """One row a method, one map an objective: iterations to the right, steps downward, colour the size of credit; PNG and SVG."""
    names = [c.removeprefix("reward_") for c in store.train if c.startswith("reward_") and c != "reward_calls"]
    found = {m: credit_shares(store.train[store.train["method"] == m], names) for m in methods}
    shares = {method: share for method, share in found.items() if share is not None}
    if not shares:
        return
    top = max(1.0, *(float(np.nanmax(share)) for share in shares.values()))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(PAGE, 1.0 * len(shares) + 1.3), layout="constrained")
        axes = figure.subplots(len(shares), len(names), squeeze=False, sharex=True)
        for row, (method, share_ITK) in zip(axes, shares.items()):
            each = -(-len(share_ITK) // MOST_DRAWN)
            binned = np.stack([share_ITK[i : i + each].mean(axis=0) for i in range(0, len(share_ITK), each)])
            extent = (-0.5, len(binned) * each - 0.5, binned.shape[1] - 0.5, -0.5)
            for k, axis in enumerate(row):
                look = {"cmap": "cividis", "vmin": 0, "vmax": top, "aspect": "auto", "interpolation": "nearest"}
                image = axis.imshow(binned[:, :, k].T, extent=extent, **look)
                axis.tick_params(labelleft=k == 0)
                axis.locator_params(integer=True, nbins=5)
            row[0].set_ylabel(method.replace("_", "_\n").replace("@", "\n@") + "\nstep", rotation=0, ha="right", va="center")
        for k, name in enumerate(names):
            axes[0, k].set_title(metric_of(name).label)
            axes[-1, k].set_xlabel("iteration")
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01).set_label("size of credit (1 = an equal share)")
        caption = (
            "Downward: denoising steps (0: the noisiest). Blank: a step never trained, or the run had ended. Colour: mean |credit"
        )
        write_figure(
            figure, path_stem, f"{caption} × advantage| over samples and seeds. Left out: methods that sum the rewards first."
        )


def credit_profiles(
    profiles: Mapping[str, np.ndarray], sigma_T: np.ndarray, names: Sequence[str], path_stem: Path, caption: str = ""
) -> None:
    """One panel an objective: size of credit over the noise level; writes ``<path_stem>.png`` and ``.svg``.

    profiles: "truth" and methods → (R, T, K) root mean squares scaled to 1 over the steps, row 0 the estimate, the others
    bootstrap resamples, from which the band of the truth is drawn. Noise falls from left to right, as sampling runs.
    """
    styles = method_styles([method for method in profiles if method != "truth"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(names) + 0.3, 3.5), layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        for k, (axis, name) in enumerate(zip(axes, names)):
            truth_RT = profiles["truth"][:, :, k]
            low, high = np.nanpercentile(truth_RT[1:], [2.5, 97.5], axis=0)
            axis.fill_between(sigma_T, low, high, color="#000000", alpha=0.18, linewidth=0)
            axis.plot(sigma_T, truth_RT[0], color="#000000", linewidth=2.4, label="truth")
            for i, (method, (color, line, marker)) in enumerate(styles.items()):
                look = {"color": color, "linestyle": line, "marker": marker, "markersize": 4, "markevery": (i % 3, 3)}
                axis.plot(sigma_T, profiles[method][0, :, k], label=method, **look)
            axis.invert_xaxis()
            axis.set(title=name, xlabel="noise level σ of the step's state")
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel("size of credit (RMS over steps = 1)")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, handlelength=HANDLE)
        write_figure(figure, path_stem, caption)
