"""eval.plots: the pixels and lines that must come out, and the same bytes each time."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from eval.media import read_video
from eval.plot_credit import credit_profiles
from eval.plots import (
    COLORS,
    FALLBACK_COLORS,
    FALLBACK_MARKERS,
    GRID_HEAD,
    GRID_LEFT,
    MARKERS,
    PAGE,
    _broken_name,
    clip_grid,
    contact_sheet,
    dot_plot,
    interval_words,
    method_styles,
    sample_grid,
    save_figure,
)
from eval.stats import bootstrap_interval
from eval.tables import build_table

ARMS = ("static_multi_reward", "otca", "otca@rho0")


def rgb(color):
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def has(image, color):
    return bool((image == rgb(color)).all(-1).any())


def words(svg):
    """The text of a drawing, a caption's lines joined."""
    return " ".join(" ".join(re.findall("<!-- (.*?) -->", svg, re.S)).split())


def test_colours_are_fixed_for_our_methods_and_styles_tell_the_others_apart_in_grey():
    """Seven rivals, one with a variant, and 13 variants of named methods: 21 pairs of line and marker, none of a named method."""
    rivals = [*(f"rival_{i}" for i in range(7)), "rival_0@equal"]
    variants = [f"{name}@{i}" for name, count in {"otca": 4, "otca_tcd": 4, "process_credit": 5}.items() for i in range(count)]
    methods = [*rivals, *COLORS, *variants]
    styles = method_styles(methods)
    assert all(styles[name] == (color, "-", MARKERS[name]) for name, color in COLORS.items())
    assert len({style[1:] for style in styles.values()}) == len(methods) == len(COLORS) + 21
    assert len(set(MARKERS.values()) | set(FALLBACK_MARKERS)) == len(MARKERS) + len(FALLBACK_MARKERS)
    assert method_styles(methods[::-1]) == styles


def test_variants_have_shades_of_their_methods_colour():
    """Darker, lighter, darkest, the same; each shade with a line of its own until twelve have passed."""
    variants = [f"otca@{i:02d}" for i in range(12)]
    styles = method_styles([*variants, "mine@00"])
    assert len({style[:2] for name, style in styles.items() if name in variants}) == 12
    own, *shades = (np.array(rgb(color)) for color in (COLORS["otca"], *(styles[name][0] for name in variants[:4])))
    assert [round(shade.mean() / own.mean(), 1) for shade in shades] == [0.6, 1.5, 0.3, 1.0]
    assert styles["mine@00"][0] == FALLBACK_COLORS[0]


def make_images(rows, columns, size=64):
    """Images of one grey each: 100 + 10·row + column."""
    return [[np.full((size, size, 3), 100 + 10 * r + c, np.uint8) for c in range(columns)] for r in range(rows)]


def test_sample_grid_enlarges_every_pixel_to_a_square(tmp_path):
    images = make_images(2, 3)
    labels = ["a long prompt about $5 and $6 with a red ring left of a blue cross", "two rings"]
    sample_grid(images, labels, ["base", "otca", "process_credit"], tmp_path / "grid.png")
    image = pixels(tmp_path / "grid.png")
    for r in range(2):
        for c in range(3):
            y, x = np.nonzero((image == 100 + 10 * r + c).all(-1))
            inside = (x >= GRID_LEFT) & (y >= GRID_HEAD)  # a few grey edges of letters lie outside
            assert inside.sum() == 192 * 192 and np.ptp(x[inside]) == np.ptp(y[inside]) == 191
    assert (image[:, :GRID_LEFT] < 128).any()  # the prompts


def test_sample_grid_marks_verdicts_and_is_deterministic(tmp_path):
    images = make_images(1, 3)
    for name in ("a.png", "b.png"):
        sample_grid(images, ["rings"], ["x", "y", "z"], tmp_path / name, verdicts=[[True, False, None]])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    image = pixels(tmp_path / "a.png")
    tick, cross, plain = (image[GRID_HEAD:][:192, GRID_LEFT + 200 * c :][:, :192] for c in range(3))
    assert has(tick, "#007A5A") and not has(tick, "#C04A00")
    assert has(cross, "#C04A00") and not has(cross, "#007A5A")
    assert (plain == 102).all()


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("otca", ["otca"]),
        ("process_credit", ["process_credit"]),
        ("static_multi_reward", ["static_multi_", "reward"]),
        ("process_credit@early3-equal40", ["process_credit", "@early3-", "equal40"]),
        ("averyveryverylongname_x", ["averyveryverylongname_", "x"]),
        ("_a--b@", ["_a--b@"]),
    ],
)
def test_names_break_at_their_own_marks(name, lines):
    assert _broken_name(name, 14).split("\n") == lines


def test_sample_grid_refuses_ragged_input(tmp_path):
    images = make_images(1, 2)
    with pytest.raises(ValueError, match=r"labels ask for rows of \[3\] cells, images has \[2\]"):
        sample_grid(images, ["rings"], ["x", "y", "z"], tmp_path / "grid.png")
    with pytest.raises(ValueError, match=r"verdicts has \[1\]"):
        sample_grid(images, ["rings"], ["x", "y"], tmp_path / "grid.png", verdicts=[[True]])
    images[0][1] = images[0][1][:32, :32]
    with pytest.raises(ValueError, match="one size"):
        sample_grid(images, ["rings"], ["x", "y"], tmp_path / "grid.png")


def test_drawings_are_small_and_look_the_same(tmp_path):
    """256 colours instead of all: fewer bytes, one value in a thousand off by more than 20 levels of 255."""
    rng = np.random.default_rng(0)
    figure = Figure(figsize=(4, 3))
    for i, color in enumerate(COLORS.values()):
        figure.gca().fill_between(range(9), rng.normal(size=9), rng.normal(size=9), color=color, alpha=0.2, label=str(i))
    save_figure(figure, tmp_path / "all.png")
    save_figure(figure, tmp_path / "few.png", colors=256)
    whole, few = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), int) for name in ("all", "few"))
    assert np.quantile(abs(whole - few), 0.999) <= 20
    assert (tmp_path / "few.png").stat().st_size < 0.6 * (tmp_path / "all.png").stat().st_size


def test_contact_sheet_reads_row_by_row():
    """Five frames of one grey each: three columns, two rows, the last place white."""
    clip = np.stack([np.full((2, 4, 3), 10 * f, np.uint8) for f in range(5)])
    sheet = contact_sheet(clip)
    assert sheet.shape == (4, 12, 3)
    assert sheet[::2, ::4, 0].tolist() == [[0, 10, 20], [30, 40, 255]]


def test_clip_grid_plays_every_frame(tmp_path):
    """Two cells of four frames each, read back to 3 levels of 255, and an MP4 of the same length beside it."""
    clips = [[np.stack([np.full((64, 64, 3), 20 * f + 5 * c, np.uint8) for f in range(4)]) for c in range(2)]]
    clip_grid(clips, ["a ring"], ["x", "y"], tmp_path / "clips", fps=8)
    video = read_video(tmp_path / "clips.webp")
    assert video.fps == 8 and len(video.frames_FCHW) == 4
    greys = (video.frames_FCHW[:, 0, GRID_HEAD + 96, [GRID_LEFT + 96, GRID_LEFT + 296]] * 255).round().int()
    assert (greys - torch.tensor([[20 * f, 20 * f + 5] for f in range(4)])).abs().max() <= 3
    assert len(read_video(tmp_path / "clips.mp4").frames_FCHW) == 4


def dots(tmp_path, name, seeds, metrics):
    """A dot plot of `ARMS`, one dot a method; returns its SVG."""
    rows = pd.DataFrame(
        [(m, s, k, 0.1 * s + i, 0, 0, "") for i, m in enumerate(ARMS) for s in range(seeds[i]) for k in metrics],
        columns=["method", "seed", "metric", "value", "network_evaluations", "reward_calls", "hash"],
    )
    dot_plot(build_table(rows), [*metrics, "diversity"], tmp_path / name)
    return (tmp_path / f"{name}.svg").read_text()


def test_dots_of_a_table(tmp_path):
    """Two metrics, three methods, the same bytes twice; a metric that the table lacks is left out."""
    drawn = [dots(tmp_path, name, (3, 3, 3), ("alignment", "kernel_distance")) for name in ("a", "b")]
    assert drawn[0] == drawn[1] and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert all(f"<!-- {text} -->" in drawn[0] for text in (*ARMS, "Alignment ↑ (trained)", "Kernel distance ↓"))
    assert "Diversity" not in drawn[0] and "lowest to highest of 3 seeds. Grey line and band: those of static_" in drawn[0]


def test_tick_labels_of_dots_stay_apart(tmp_path, monkeypatch):
    """Values of a kernel distance, of an accuracy and around 0: small ones are labelled in multiples of a power of ten."""
    rows = [
        {"metric": metric, "method": name, "baseline": "otca", "mean": low, "ci_low": low, "ci_high": high, "n_seeds": 2}
        for metric, low, high in (("kernel_distance", 1.2e-4, 9e-4), ("accuracy", 0.405, 0.495), ("clip_score", -0.013, 0.012))
        for name in ARMS
    ]
    drawn = []
    monkeypatch.setattr("eval.plots.write_figure", lambda figure, *_: drawn.append(figure))
    dot_plot(pd.DataFrame(rows), ["kernel_distance", "accuracy", "clip_score"], tmp_path / "dots")
    drawn[0].draw_without_rendering()
    for axis in drawn[0].axes:
        ticks = [tick for tick in axis.xaxis.get_major_ticks() if axis.get_xlim()[0] <= tick.get_loc() <= axis.get_xlim()[1]]
        boxes = [tick.label1.get_window_extent() for tick in ticks]
        assert len(boxes) >= 2 and all(left.x1 + 4 < right.x0 for left, right in pairwise(boxes))
    assert "10^{−4}" in drawn[0].axes[0].xaxis.get_offset_text().get_text()


def test_dots_are_as_wide_as_the_page_in_rows_of_three(tmp_path):
    """Four panels make two rows, with the methods' names at the left of each."""
    drawn = dots(tmp_path, "four", (2, 3, 3), ("alignment", "quality", "accuracy", "clip_score"))
    assert Image.open(tmp_path / "four.png").width == 150 * PAGE
    assert [drawn.count(f"<!-- {method} -->") for method in ARMS] == [2, 2, 2]


@pytest.mark.parametrize(
    "counts, said",
    [
        ([2], "lowest to highest of 2 seeds"),
        ([3, 2, 3], "lowest to highest of 2 or 3 seeds"),
        ([10, 5], "95 % bootstrap interval of the interquartile mean"),
        ([10, 3], "lowest to highest of 3 seeds, 95 % bootstrap interval of the interquartile mean of more"),
        ([2, 1], "lowest to highest of 2 seeds, none with one seed"),
    ],
)
def test_an_interval_is_named_for_what_it_is(counts, said):
    """Of 3 values all resamples are the lowest in 1 of 27, more than the 2.5 % cut off; of 5 far fewer are."""
    assert interval_words(counts) == said
    for count in set(counts):
        whole = bootstrap_interval(range(count)) == (0, count - 1)
        assert whole == (1 < count < 4)
    assert interval_words(counts, "share") == said.replace("interquartile mean", "share")


def test_credit_profiles_show_the_truth_and_each_method(tmp_path):
    rng = np.random.default_rng(0)
    profiles = {name: rng.uniform(0.5, 1.5, (20, 5, 2)) for name in ("truth", "otca_tcd", "coca")}
    credit_profiles(profiles, np.linspace(1, 0.2, 5), ["quality", "alignment"], tmp_path / "profiles")
    drawn = (tmp_path / "profiles.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in (*profiles, "quality", "alignment"))
    assert len(re.findall(r'<path id="m', drawn.partition("axes_2")[0])) >= 4  # two ticks and a marker for each method
    assert (tmp_path / "profiles.png").stat().st_size > 5000
