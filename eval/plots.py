"""One style for every figure, with one colour, line and marker a method, and grids of samples.

The same data give the same bytes: the SVG hash salt is fixed and no date or library version is stored.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from eval.media import read_video
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
"""Okabe and Ito's colour-blind-safe palette, fixed by method in every figure; their lines are solid."""
MARKERS = "osD^vPX"  # of the methods above, in their order
OTHER_COLORS = ("#332288", "#882255", "#999933", "#44AA99", "#AA4499", "#661100")
"""Paul Tol's muted palette for the other methods, in alphabetical order; a variant has its method's colour."""
OTHER_LINES, OTHER_MARKERS = ("--", ":", "-."), "<>p*hd8"  # of the others, in turn: 21 pairs before one comes back
PAGE, MOST_ABREAST = 8.0, 3
"""Inches of a figure's width (9 points are 12.5 pixels at the 800 of a README), and panels of a row."""
STYLE = dict(matplotlib.rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False))
CELL, GRID_LEFT, GRID_HEAD, GRID_GAP = 192, 250, 90, 8
"""Pixels of a sample grid: of a cell at most, left of the first one (prompts), above it (methods), and between cells."""
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def method_styles(methods: Collection[str]) -> dict[str, dict[str, str]]:
    """Colour, line and marker of each method, as matplotlib takes them; no two look alike, for up to 21 beside the named ones."""
    styles = {m: {"color": color, "linestyle": "-", "marker": MARKERS[i]} for i, (m, color) in enumerate(COLORS.items())}
    for i, method in enumerate(sorted(set(methods) - set(COLORS))):
        color = COLORS.get(method.partition("@")[0], OTHER_COLORS[i % len(OTHER_COLORS)])
        line, marker = OTHER_LINES[i % len(OTHER_LINES)], OTHER_MARKERS[i % len(OTHER_MARKERS)]
        styles[method] = {"color": color, "linestyle": line, "marker": marker}
    return {method: styles[method] for method in methods}


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
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=4)


def write_figure(figure: Figure, path_stem: Path, caption: str = "") -> None:
    """Write ``<path_stem>.png``, in 256 colours, and ``.svg``, with a caption below, wrapped to the figure's width."""
    if caption:
        text = textwrap.fill(caption, int(15.5 * figure.get_figwidth()))
        figure.supxlabel(text, fontsize=7.5, color="#555555", parse_math=False)
    FigureCanvasAgg(figure)
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png")
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    drawn = Image.open(png).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    write_picture(drawn, Path(f"{path_stem}.png"))
    write_atomic(Path(f"{path_stem}.svg"), svg.getvalue())


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())


def sample_grid(
    images: list[list[np.ndarray]],
    row_labels: list[str],
    column_labels: list[str],
    path: Path,
    verdicts: Sequence[Sequence[bool | None]] | None = None,
) -> None:
    """Write a PNG with a row a prompt (its text wrapped at the left) and a column a method.

    images: rows of pictures (H, W, 3) uint8 of one size, enlarged by a whole factor. ``verdicts``: rows of the judge's answers, a
    tick or a cross in a cell; None leaves it unmarked.
    """
    factor = max(1, CELL // max(images[0][0].shape[:2]))
    height, width = (side * factor for side in images[0][0].shape[:2])
    size = (GRID_LEFT + len(column_labels) * (width + GRID_GAP), GRID_HEAD + len(row_labels) * (height + GRID_GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    plain, bold = (ImageFont.truetype(FONTS / f"DejaVuSans{kind}.ttf", 19, layout_engine=0) for kind in ("", "-Bold"))
    for column, label in enumerate(column_labels):
        x = GRID_LEFT + column * (width + GRID_GAP) + width / 2
        draw.multiline_text((x, GRID_HEAD / 2), _broken_name(label, width // 13), "black", bold, "mm", align="center")
    for row, label in enumerate(row_labels):
        top = GRID_HEAD + row * (height + GRID_GAP)
        draw.multiline_text((GRID_GAP, top + height / 2), "\n".join(textwrap.wrap(label, 21)), "black", plain, "lm")
        for column, image in enumerate(images[row]):
            left = GRID_LEFT + column * (width + GRID_GAP)
            canvas.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (left, top))
            if verdicts is not None and verdicts[row][column] is not None:
                mark, color = ("✓", "#007A5A") if verdicts[row][column] else ("✗", "#C04A00")
                draw.circle((left + width - 15, top + 15), 12, "white", color)
                draw.text((left + width - 15, top + 15), mark, color, plain, "mm")
    write_picture(canvas, path)


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
