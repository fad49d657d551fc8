"""Figures of credit: how its size runs over the noise level, the truth beneath it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from eval.plots import HANDLE, STYLE, method_styles, write_figure


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
