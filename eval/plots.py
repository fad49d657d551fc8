"""Figures: learning curves over seeds and grids of samples, in one style and with one colour a method.

The same data give the same bytes: the SVG hash salt is fixed and no date or library version is stored.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from eval.videos import write_mp4, write_webp
from otca.files import write_atomic

COLORS = {
    "base": "#6E6E6E",
    "uniform_grpo": "#56B4E9",
    "static_multi_reward": "#0072B2",
    "otca_tcd": "#E69F00",
    "otca_moca": "#CC79A7",
    "otca": "#D55E00",
    "process_credit": "#009E73",
}
"""Okabe and Ito's colour-blind-safe palette, fixed by method in every figure."""

FALLBACK_COLORS = ("#332288", "#882255", "#999933", "#44AA99", "#AA4499", "#661100")
"""Paul Tol's muted palette for the other methods (in alphabetical order), drawn dashed, then dotted."""

FALLBACK_LINES = ("--", ":", "-.")

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "savefig.dpi": 150,
    "svg.hashsalt": "otca",
}

SMOOTHING = 5
"""Iterations of the centred moving average of a learning curve."""

CELL = 192
"""Pixels that a cell of a sample grid is enlarged to, or just below (whole factors only, so that pixels stay square)."""

GRID_DPI = 128
"""A power of two, so that pixels / GRID_DPI is exact and every image pixel lands on the raster."""


def method_styles(methods: Collection[str]) -> dict[str, tuple[str, str]]:
    """(colour, line style) of each method; distinct within a figure for up to 18 methods beside the named ones."""
    others = sorted(set(methods) - set(COLORS))
    styles = {method: (color, "-") for method, color in COLORS.items()}
    for i, method in enumerate(others):
        line, color = divmod(i, len(FALLBACK_COLORS))
        styles[method] = (FALLBACK_COLORS[color], FALLBACK_LINES[line % len(FALLBACK_LINES)])
    return {method: styles[method] for method in methods}


def learning_curves(frames: dict[str, list[pd.DataFrame]], names: list[str], path_stem: Path) -> None:
    """Draw one panel an objective: each method's reward over iterations; writes ``<path_stem>.png`` and ``.svg``.

    frames: method → the train.csv of each of its seeds, with ``iteration`` and ``reward_<name>`` columns. Lines are means over
    seeds and bands run from the lowest to the highest seed, over the iterations that all seeds of the method have reached.
    Raises KeyError naming the method, seed position and column that is missing, ValueError if a method has no frame.
    """
    styles = method_styles(frames)
    with matplotlib.rc_context(STYLE):
        width = 3.4 * len(names) + 0.3  # inches
        figure = Figure(figsize=(width, 3.7), layout="constrained")
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for axis, name in zip(axes, names):
            for method, of_seed in frames.items():
                curves = _smoothed(method, of_seed, f"reward_{name}")
                color, line = styles[method]
                axis.plot(curves.index, curves.mean(axis=1), color=color, linestyle=line, label=method)
                axis.fill_between(curves.index, curves.min(axis=1), curves.max(axis=1), color=color, alpha=0.15, linewidth=0)
            axis.set(title=name, xlabel="iteration")
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].set_ylabel("mean reward of the training samples")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(frames), 2 * len(names)))
        figure.supxlabel(textwrap.fill(_caption(frames), int(17 * width)), fontsize=7.5, color="#555555")
        save_figure(figure, Path(f"{path_stem}.png"))
        save_figure(figure, Path(f"{path_stem}.svg"))


def dot_plot(table: pd.DataFrame, metrics: Sequence[str], path_stem: Path) -> None:
    """One panel a metric, one row a method: mean and interval, the baseline's as a band; ``<path_stem>.png`` and ``.svg``.

    table: rows of `eval.tables.build_table`, of one medium and budget; metrics that it lacks are left out.
    """
    metrics = [metric for metric in metrics if (table["metric"] == metric).any()]
    methods, baseline = list(table["method"].unique()), table["baseline"].iloc[0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(metrics) + 2.0, 0.24 * len(methods) + 1.0), layout="constrained")
        axes = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
        for axis, metric in zip(axes, metrics):
            rows = table[table["metric"] == metric].set_index("method").loc[methods]
            axis.axvspan(rows["ci_low"][baseline], rows["ci_high"][baseline], color=COLORS["base"], alpha=0.18, linewidth=0)
            axis.axvline(rows["mean"][baseline], color=COLORS["base"], linewidth=1.0)
            axis.hlines(range(len(methods)), rows["ci_low"], rows["ci_high"], color=COLORS["static_multi_reward"], linewidth=1.4)
            axis.plot(rows["mean"], range(len(methods)), "o", color=COLORS["static_multi_reward"], markersize=4)
            axis.set(title=metric)
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].invert_yaxis()
        figure.supxlabel(f"mean and interval over seeds; band: {baseline}", fontsize=7.5, color="#555555")
        save_figure(figure, Path(f"{path_stem}.png"))
        save_figure(figure, Path(f"{path_stem}.svg"))


def sample_grid(
    images: list[list[np.ndarray]],
    row_labels: list[str],
    column_labels: list[str],
    path: Path,
    verdicts: Sequence[Sequence[bool | None]] | None = None,
) -> None:
    """Write a PNG with a row a prompt (its text wrapped at the left) and a column a method.

    images: rows of pictures (H, W, 3) uint8, all of one size, enlarged by a whole factor without interpolation. ``verdicts``,
    rows of the judge's answers, mark a cell with a tick (right) or a cross (wrong); None leaves it unmarked.
    Raises ValueError if rows, labels or sizes disagree.
    """
    save_figure(_grid_figure(images, row_labels, column_labels, verdicts), path, dpi=GRID_DPI)


def clip_grid(
    clips: list[list[np.ndarray]],
    row_labels: list[str],
    column_labels: list[str],
    path_stem: Path,
    fps: float,
    verdicts: Sequence[Sequence[bool | None]] | None = None,
) -> None:
    """The same grid with clips (F, H, W, 3) uint8 playing in its cells: ``<path_stem>.webp`` (lossless) and ``.mp4``."""
    frames = []
    for at in range(len(clips[0][0])):
        figure = _grid_figure([[clip[at] for clip in row] for row in clips], row_labels, column_labels, verdicts)
        FigureCanvasAgg(figure).draw()
        pixels_HWC = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        frames.append(pixels_HWC[: len(pixels_HWC) // 2 * 2, : pixels_HWC.shape[1] // 2 * 2])  # MP4 needs even sides
    video_FCHW = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    write_webp(Path(f"{path_stem}.webp"), video_FCHW, fps)
    write_mp4(Path(f"{path_stem}.mp4"), video_FCHW, fps)


def contact_sheet(clip_FHWC: np.ndarray) -> np.ndarray:
    """The frames of a clip in reading order, as square as can be: (rows·H, columns·W, 3) uint8, white where none is left."""
    frames, height, width, _ = clip_FHWC.shape
    columns = int(np.ceil(np.sqrt(frames)))
    rows = -(-frames // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[:frames] = clip_FHWC
    return sheet.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def _grid_figure(images, row_labels, column_labels, verdicts) -> Figure:
    shape = [len(column_labels)] * len(row_labels)
    for what, cells in (("images", images), ("verdicts", verdicts)):
        if cells is not None and [len(row) for row in cells] != shape:
            raise ValueError(f"sample grid: labels ask for rows of {shape} cells, {what} has {[len(row) for row in cells]}")
    sizes = {image.shape for row in images for image in row}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs images of one size, got {sorted(sizes)} (height, width, channels)")
    height, width, _ = sizes.pop()
    factor = max(1, CELL // max(height, width))
    height, width, gap, head, left = height * factor, width * factor, 8, 34, 200
    total_width, total_height = left + len(column_labels) * (width + gap), head + len(row_labels) * (height + gap)
    with matplotlib.rc_context(STYLE | {"font.size": 7.5}):
        figure = Figure(figsize=(total_width / GRID_DPI, total_height / GRID_DPI), dpi=GRID_DPI)

        def write(x: float, y: float, text: str, **style) -> None:
            """Text at pixels from the left and from the top."""
            figure.text(x / total_width, 1 - y / total_height, text, parse_math=False, **style)

        for column, label in enumerate(column_labels):
            x = left + column * (width + gap) + width / 2
            write(x, head / 2, "\n".join(textwrap.wrap(label, width // 8)), ha="center", va="center", fontweight="bold")
        for row, label in enumerate(row_labels):
            top = head + row * (height + gap)
            write(gap, top + height / 2, "\n".join(textwrap.wrap(label, 26)), ha="left", va="center")
            for column, image in enumerate(images[row]):
                x = left + column * (width + gap)
                enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
                figure.figimage(enlarged, xo=x, yo=total_height - top - height)
                if verdicts is not None and verdicts[row][column] is not None:
                    mark, color = ("✓", "#007A5A") if verdicts[row][column] else ("✗", "#C04A00")
                    circle = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": color, "linewidth": 1}
                    write(x + width - 14, top + 14, mark, color=color, ha="center", va="center", fontsize=8.5, bbox=circle)
    return figure


def _smoothed(method: str, of_seed: list[pd.DataFrame], column: str) -> pd.DataFrame:
    """Moving average of one reward, a column a seed, indexed by the iterations that all seeds have."""
    if not of_seed:
        raise ValueError(f"learning curves: {method!r} has no run")
    for position, frame in enumerate(of_seed):
        missing = {"iteration", column} - set(frame.columns)
        if missing:
            raise KeyError(f"learning curves: run {position} of {method!r} has no column {', '.join(sorted(missing))}")
    curves = pd.concat([frame.set_index("iteration")[column] for frame in of_seed], axis=1, join="inner").sort_index()
    return curves.rolling(SMOOTHING, center=True, min_periods=1).mean()


def _caption(frames: dict[str, list[pd.DataFrame]]) -> str:
    counts = sorted({len(of_seed) for of_seed in frames.values()})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"Mean over seeds (n = {seeds}); band: lowest to highest seed; centred moving average over {SMOOTHING} iterations."


def save_figure(figure: Figure, path: Path, **options) -> None:
    """Write a figure atomically, in the format of its suffix and without date or version."""
    FigureCanvasAgg(figure)
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], metadata=metadata, **options)
    write_atomic(path, buffer.getvalue())
