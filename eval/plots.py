"""Figures in one style, with one colour, line and marker a method: dots and intervals, grids of samples.

The same data give the same bytes: the SVG hash salt is fixed and no date or library version is stored.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from eval.media import read_video
from eval.tables import heading
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
"""Paul Tol's muted palette for the other methods, in alphabetical order."""

SHADES = (-0.4, 0.35, -0.7, 0.0)
"""Share of black (below 0) or white in the colours of a named method's variants, in turn; one more than `FALLBACK_LINES`."""

FALLBACK_LINES = ("--", ":", "-.")
"""Lines of what is not a named method, in turn; named methods are solid."""

MARKERS = {
    "base": "o",
    "uniform_grpo": "s",
    "static_multi_reward": "D",
    "otca_tcd": "^",
    "otca_moca": "v",
    "otca": "P",
    "process_credit": "X",
}
"""Markers tell methods apart where colours do not (in grey); the others, variants too, take `FALLBACK_MARKERS` in turn."""

FALLBACK_MARKERS = ("<", ">", "p", "*", "h", "d", "8")
"""Seven, which shares no divisor with the number of `FALLBACK_LINES`: 21 pairs of marker and line come before one comes back."""

HANDLE = 3.5
"""Length of a line in a legend, in heights of its letters: shows two dashes beside the marker."""

PAGE = 8.0
"""Inches of a figure's width: at the 800 pixels of a README, 9 points are 12.5 pixels."""

MOST_ABREAST = 3
"""Panels of a row: three and the methods' names fill `PAGE`."""

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

CELL = 192
"""Pixels that a cell of a sample grid is enlarged to, or just below (whole factors only, so that pixels stay square)."""

GRID_LEFT, GRID_HEAD, GRID_GAP = 250, 90, 8
"""Pixels of a sample grid left of its first cell (prompts), above it (names of methods) and between cells."""

GRID_DPI = 128
"""A power of two, so that pixels / GRID_DPI is exact and every image pixel lands on the raster."""


def method_styles(methods: Collection[str]) -> dict[str, tuple[str, str, str]]:
    """(colour, line, marker) of each method; no two share line and marker, for up to 21 beside the named ones.

    A variant of a named method (``otca@3steps``) has a shade of its colour.
    """
    styles = {method: (color, "-", MARKERS[method]) for method, color in COLORS.items()}
    turns: Counter[str] = Counter()
    for i, method in enumerate(sorted(set(methods) - set(COLORS))):
        own = COLORS.get(method.partition("@")[0], "")
        colors = [_shaded(own, share) for share in SHADES] if own else FALLBACK_COLORS
        line, marker = FALLBACK_LINES[i % len(FALLBACK_LINES)], FALLBACK_MARKERS[i % len(FALLBACK_MARKERS)]
        styles[method] = (colors[turns[own] % len(colors)], line, marker)
        turns[own] += 1
    return {method: styles[method] for method in methods}


def _shaded(color: str, share: float) -> str:
    """A colour mixed with so much white, or black if ``share`` is below 0."""
    return to_hex((1 - abs(share)) * np.array(to_rgb(color)) + max(share, 0.0))


def dot_plot(table: pd.DataFrame, metrics: Sequence[str], path_stem: Path) -> None:
    """One panel a metric, one row a method: mean and interval, the baseline's as a band; ``<path_stem>.png`` and ``.svg``.

    table: rows of `eval.tables.build_table`, of one modality; metrics that it lacks are left out.
    """
    metrics = [metric for metric in metrics if (table["metric"] == metric).any()]
    methods, baseline = list(table["method"].unique()), table["baseline"].iloc[0]
    with panels(len(metrics), 0.2 * len(methods) + 0.6, sharey=True) as (figure, axes):
        for axis, metric in zip(axes, metrics):
            rows = table[table["metric"] == metric].set_index("method").reindex(methods)
            axis.axvspan(rows["ci_low"][baseline], rows["ci_high"][baseline], color=COLORS["base"], alpha=0.18, linewidth=0)
            axis.axvline(rows["mean"][baseline], color=COLORS["base"], linewidth=1.0)
            axis.hlines(range(len(methods)), rows["ci_low"], rows["ci_high"], color=COLORS["static_multi_reward"], linewidth=1.4)
            axis.plot(rows["mean"], range(len(methods)), "o", color=COLORS["static_multi_reward"], markersize=4)
            axis.set_title(heading(metric), fontsize=STYLE["font.size"])
            axis.xaxis.get_major_locator().set_params(nbins=3, steps=[1, 2, 5, 10])  # labels of five characters stay apart
            axis.ticklabel_format(axis="x", scilimits=(-2, 4), useMathText=True)  # longer ones are put as multiples of 10ⁿ
        axes[0].set_yticks(range(len(methods)), methods)
        axes[0].set_ylim(len(methods) - 0.4, -0.6)
        caption = f"Dot: mean over seeds; line: {interval_words(table['n_seeds'])}. Grey line and band: those of {baseline}."
        write_figure(figure, path_stem, caption)


@contextmanager
def panels(count: int, height: float, **shared: bool) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of the page's width with so many panels of a height in inches, at most `MOST_ABREAST` in a row."""
    columns = 2 if count == 4 else min(count, MOST_ABREAST)
    rows = -(-count // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(PAGE, height * rows + 1.0), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False, **shared).flatten())
        for axis in axes[count:]:
            axis.set_visible(False)
        yield figure, axes[:count]


def legend(figure: Figure, axis: Axes) -> None:
    """One legend above all panels, of what one of them shows."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4, handlelength=HANDLE)


def interval_words(counts: Collection[int], statistic: str = "interquartile mean") -> str:
    """What a bootstrap interval over so many seeds is, in every caption: of 2 or 3 it runs from the lowest to the highest."""
    few = sorted(set(counts) & {2, 3})
    said = [f"lowest to highest of {' or '.join(map(str, few))} seeds"] if few else []
    if max(counts) > 3:
        said.append(f"95 % bootstrap interval of the {statistic}{' of more' if few else ''}")
    if min(counts) < 2:
        said.append("none with one seed")
    return ", ".join(said)


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
    shape = [len(column_labels)] * len(row_labels)
    for what, cells in (("images", images), ("verdicts", verdicts)):
        if cells is not None and [len(row) for row in cells] != shape:
            raise ValueError(f"sample grid: labels ask for rows of {shape} cells, {what} has {[len(row) for row in cells]}")
    sizes = {image.shape for row in images for image in row}
    if len(sizes) != 1:
        raise ValueError(f"a grid needs images of one size, got {sorted(sizes)} (height, width, channels)")
    height, width, _ = sizes.pop()
    factor = max(1, CELL // max(height, width))
    height, width, gap, head, left = height * factor, width * factor, GRID_GAP, GRID_HEAD, GRID_LEFT
    total_width, total_height = left + len(column_labels) * (width + gap), head + len(row_labels) * (height + gap)
    with matplotlib.rc_context(STYLE | {"font.size": 11.0}):
        figure = Figure(figsize=(total_width / GRID_DPI, total_height / GRID_DPI), dpi=GRID_DPI)

        def write(x: float, y: float, text: str, **style) -> None:
            """Text at pixels from the left and from the top."""
            figure.text(x / total_width, 1 - y / total_height, text, parse_math=False, **style)

        for column, label in enumerate(column_labels):
            x = left + column * (width + gap) + width / 2
            write(x, head / 2, _broken_name(label, width // 13), ha="center", va="center", fontweight="bold")
        for row, label in enumerate(row_labels):
            top = head + row * (height + gap)
            write(gap, top + height / 2, "\n".join(textwrap.wrap(label, 21)), ha="left", va="center")
            for column, image in enumerate(images[row]):
                x = left + column * (width + gap)
                enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
                figure.figimage(enlarged, xo=x, yo=total_height - top - height)
                if verdicts is not None and verdicts[row][column] is not None:
                    mark, color = ("✓", "#007A5A") if verdicts[row][column] else ("✗", "#C04A00")
                    circle = {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": color, "linewidth": 1}
                    write(x + width - 15, top + 15, mark, color=color, ha="center", va="center", fontsize=9, bbox=circle)
    save_figure(figure, path, dpi=GRID_DPI)


def still(file: Path) -> np.ndarray:
    """A picture, or the frames of a clip in reading order: RGB pixels (H, W, 3) uint8."""
    if file.suffix == ".webp":
        return contact_sheet((read_video(file).frames_FCHW * 255).round().byte().permute(0, 2, 3, 1).numpy())
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def contact_sheet(clip_FHWC: np.ndarray) -> np.ndarray:
    """The frames of a clip in reading order, as square as can be: (rows·H, columns·W, 3) uint8, white where none is left."""
    frames, height, width, _ = clip_FHWC.shape
    columns = int(np.ceil(np.sqrt(frames)))
    rows = -(-frames // columns)
    sheet = np.full((rows * columns, height, width, 3), 255, np.uint8)
    sheet[:frames] = clip_FHWC
    return sheet.reshape(rows, columns, height, width, 3).transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def _broken_name(name: str, width: int) -> str:
    """A method's name over lines of at most ``width`` characters, broken before @ and after _ and -, never within a word."""
    lines = [""]
    for part in re.findall(r"@?[^@_-]+[_-]?|.", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def write_figure(figure: Figure, path_stem: Path, caption: str = "") -> None:
    """Write ``<path_stem>.png`` and ``.svg``, with a caption below, wrapped to the figure's width."""
    if caption:
        text = textwrap.fill(caption, int(15.5 * figure.get_figwidth()))
        figure.supxlabel(text, fontsize=7.5, color="#555555", parse_math=False)
    save_figure(figure, Path(f"{path_stem}.png"), colors=256)
    save_figure(figure, Path(f"{path_stem}.svg"))


def save_figure(figure: Figure, path: Path, colors: int | None = None, **options) -> None:
    """Write a figure atomically, in the format of its suffix and without date or version; as PNG of so many ``colors``.

    A drawing looks the same in 256 colours and takes a third of the bytes; pictures want all.
    """
    FigureCanvasAgg(figure)
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], metadata=metadata, **options)
    if colors is not None:
        drawn = Image.open(buffer).convert("RGB").quantize(colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        drawn.save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
