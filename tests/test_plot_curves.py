"""eval.plot_curves: the numbers of a curve and of a credit map worked by hand, what is drawn, and the same bytes twice."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.plot_curves import MOST_DRAWN, SMOOTHING, credit_maps, credit_shares, curve_of, learning_curves
from eval.plots import COLORS, method_styles
from reproduce.costs import Timed, train_seconds, widest_hardware
from reproduce.figures import draw_training, on_one_hardware
from tests.test_plots import has, pixels, words

PUBLISHED = Path(__file__).parent.parent / "results"


def frame(offset=0.0, length=12):
    iteration = np.arange(length)
    return pd.DataFrame({"iteration": iteration, "reward_alignment": offset + iteration / 100, "reward_quality": offset})


# ------------------------------------------------------------------------------------------------------ learning curves


def test_a_curve_is_the_mean_of_smoothed_seeds_and_its_band():
    """Seeds at 0, 1 and 5 above the same line: mean 2 above it, band from lowest to highest; smoothing leaves a line a line."""
    inner = slice(SMOOTHING // 2, -(SMOOTHING // 2))
    curve = curve_of("otca", [frame(offset) for offset in (0.0, 1.0, 5.0)], "reward_alignment")
    line = np.arange(12) / 100
    for found, above in ((curve.mean, 2.0), (curve.low, 0.0), (curve.high, 5.0)):
        np.testing.assert_allclose(found[inner], line[inner] + above)
    assert curve.spent.tolist() == list(range(12))
    one = curve_of("otca", [frame()], "reward_alignment")
    assert np.isnan(one.low).all() and np.isnan(one.high).all() and np.isfinite(one.mean).all()


def test_a_point_has_cost_what_came_before_it():
    """Samples of the first iteration come from weights that nothing was spent on; seeds of different cost are averaged."""
    seeds = [frame(length=3).assign(network_evaluations=[cost, 2 * cost, 3 * cost]) for cost in (10, 30)]
    assert curve_of("otca", seeds, "reward_quality", "network_evaluations").spent.tolist() == [0, 20, 40]


def test_learning_curves_draw_each_method_in_its_colour(tmp_path):
    learning_curves({"otca": [frame(), frame(0.2)], "base": [frame(0.1)]}, ["alignment", "quality"], tmp_path / "curves")
    image = pixels(tmp_path / "curves.png")
    assert image.std() > 5 and has(image, COLORS["otca"]) and has(image, COLORS["base"])
    assert not has(image, COLORS["process_credit"])
    svg = (tmp_path / "curves.svg").read_text()
    assert svg.count('id="axes_') == 2 and "dc:date" not in svg and "Matplotlib v" not in svg


WHOLE = "lowest to highest of 2 seeds"
DRAWN = "95 % bootstrap interval of the interquartile mean"


@pytest.mark.parametrize(
    "seeds, bands, said",
    [
        ([2] * 5, 5, f"(n = 2); band: {WHOLE}; centred"),
        ([2] * 6, 0, "(n = 2); no band where n is 2; centred"),
        ([4] * 6, 6, f"(n = 4); band: {DRAWN}; centred"),
        ([10, 3, 3, 2, 2, 5], 2, f"(n = 2 to 10); band: {DRAWN}; no band where n is 2 or 3; centred"),
        ([10, 2], 2, f"(n = 2 to 10); band: {WHOLE}, {DRAWN} of more; centred"),
        ([1, 2], 1, f"(n = 1 to 2); band: {WHOLE}; no band where n is 1; centred"),
    ],
)
def test_bands_of_few_seeds_are_drawn_for_few_methods(seeds, bands, said, tmp_path):
    """The caption says of each arm what its band is, or that it has none."""
    frames = {f"m{i}": [frame(i + seed / 10) for seed in range(count)] for i, count in enumerate(seeds)}
    learning_curves(frames, ["alignment"], tmp_path / "curves")
    svg = (tmp_path / "curves.svg").read_text()
    assert svg.count("FillBetweenPolyCollection") == bands and said in words(svg)


def test_an_axis_is_logarithmic_where_most_curves_would_be_squeezed(tmp_path):
    """Of three runs of 12, 12 and 240 seconds two would end in a twentieth of the axis; of 12, 120 and 240 one would."""
    for middle, ticks in ((1, ["0", "1", "3", "10", "30", "100"]), (10, ["0", "50", "100", "150", "200"])):
        frames = {f"m{i}": [frame().assign(seconds=np.arange(1, 13) * each)] for i, each in enumerate((1, middle, 20))}
        learning_curves(frames, ["alignment"], tmp_path / "curves", "seconds")
        svg = (tmp_path / "curves.svg").read_text()
        labels = re.findall("<!-- ([^ ]+) -->", svg.partition('id="matplotlib.axis_2"')[0])
        assert [label for label in labels if label.isdigit()] == ticks
        assert ("<!-- seconds of training, log scale -->" in svg) == ("is logarithmic beyond" in words(svg)) == (middle == 1)


def test_learning_curves_are_the_same_bytes_twice(tmp_path):
    for name in ("a", "b"):
        learning_curves({"otca": [frame(), frame(0.2)], "mine": [frame()]}, ["alignment"], tmp_path / name)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_only_iterations_that_all_seeds_reached_are_drawn(tmp_path):
    learning_curves({"otca": [frame(), frame(length=8)]}, ["quality"], tmp_path / "long")
    learning_curves({"otca": [frame(length=8), frame(length=8)]}, ["quality"], tmp_path / "short")
    assert (tmp_path / "long.png").read_bytes() == (tmp_path / "short.png").read_bytes()
    assert SMOOTHING % 2 == 1  # a centred window


def test_long_trainings_are_thinned(tmp_path):
    """Ten times as many iterations make no larger file than twice as many."""
    for times in (2, 10):
        learning_curves(
            {"otca": [frame(length=times * MOST_DRAWN), frame(0.1, times * MOST_DRAWN)]}, ["quality"], tmp_path / f"{times}"
        )
    short, long = ((tmp_path / f"{times}.svg").stat().st_size for times in (2, 10))
    assert abs(long - short) < 2_000


def test_what_is_spent_is_on_the_axis(tmp_path):
    rows = frame().assign(seconds=np.arange(1, 13) * 2.0)
    learning_curves({"otca": [rows, rows]}, ["quality"], tmp_path / "seconds", "seconds")
    drawn = (tmp_path / "seconds.svg").read_text()
    assert "<!-- seconds of training -->" in drawn and "spread evenly over its iterations" in drawn
    with pytest.raises(KeyError, match="run 0 of 'otca' has no column seconds"):
        learning_curves({"otca": [frame()]}, ["quality"], tmp_path / "x", "seconds")


def test_learning_curves_name_what_is_missing(tmp_path):
    with pytest.raises(KeyError, match="run 1 of 'otca' has no column reward_motion"):
        learning_curves({"otca": [frame().assign(reward_motion=0.0), frame()]}, ["motion"], tmp_path / "x")
    with pytest.raises(ValueError, match="'otca' has no run"):
        learning_curves({"otca": []}, ["quality"], tmp_path / "x")


# ---------------------------------------------------------------------------------------------------------- credit maps


def credited(*rows):
    """train.csv with credit sizes of three steps and the objectives x and y_1, six numbers an iteration."""
    columns = [f"credit_step_{t}_{name}" for t in range(3) for name in ("x", "y_1")]
    return pd.DataFrame(rows, columns=columns).assign(iteration=range(len(rows)))


def test_credit_shares_are_multiples_of_an_equal_share():
    """Sizes 1, 3 and 2, 2: mean 2. Scale is no matter; seeds are averaged; an untrained step and no credit at all are NaN."""
    first, second = credited((1, 3, 2, 2, 0, 0), (0,) * 6), credited((5, 5, 5, 5, 0, 0), (0,) * 6)
    share_ITK = credit_shares([first], ["x", "y_1"])
    assert share_ITK[0, :2].tolist() == [[0.5, 1.5], [1.0, 1.0]]
    assert np.isnan(share_ITK[0, 2]).all() and np.isnan(share_ITK[1]).all()
    assert credit_shares([first, second], ["x", "y_1"])[0, :2].tolist() == [[0.75, 1.25], [1.0, 1.0]]


def test_rows_without_credit_have_no_shares():
    old = credited((1, 3, 2, 2, 0, 0)).drop(columns="credit_step_1_x")
    assert credit_shares([frame()], ["alignment"]) is None and credit_shares([old], ["x", "y_1"]) is None
    assert credit_shares([credited((1,) * 6), frame()], ["x", "y_1"]) is None
    assert credit_shares([credited((0,) * 6)], ["x", "y_1"]) is None


def test_credit_maps_show_every_method_and_objective(tmp_path):
    shares = {"otca": credit_shares([credited(*[(1, 3, 2, 2, 0, 0)] * 150)], ["x", "y_1"]), "mine@a": np.ones((5, 2, 2))}
    for name in ("a", "b"):
        credit_maps(shares, ["x", "y_1"], tmp_path / name)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("otca", "x", "y_1", "iteration")) and "@a" in drawn
    assert drawn.count("<!-- step -->") == len(shares) and "never trained" in drawn and "the runs had ended" in drawn


def test_steps_of_credit_maps_count_from_0_as_in_the_rows(tmp_path):
    """Three steps, the last untrained: 0, 1 and 2 label the rows."""
    credit_maps({"otca": credit_shares([credited((1, 3, 2, 2, 0, 0))], ["x", "y_1"])}, ["x"], tmp_path / "map")
    drawn = (tmp_path / "map.svg").read_text()
    steps = drawn.partition('id="matplotlib.axis_2"')[2].partition("<!-- step -->")[0]
    assert re.findall("<!-- (.+) -->", steps) == ["0", "1", "2"] and "(0: the first, noisiest)" in words(drawn)


# --------------------------------------------------------------------------------------------------- from a run's files


def test_published_rows_are_drawn_as_far_as_they_go(tmp_path):
    """Rows of before credit was logged have no map; without published costs no curve runs over seconds."""
    runs = PUBLISHED / "image/quick"
    draw_training(runs, ["otca"], tmp_path / "all")
    assert {p.stem for p in (tmp_path / "all").iterdir()} >= {"curves", "curves-evaluations", "curves-seconds"}
    for seed in (0, 1):
        copy = tmp_path / f"runs/otca/seed{seed}/train.csv"
        copy.parent.mkdir(parents=True)
        rows = pd.read_csv(runs / f"otca/seed{seed}/train.csv")
        rows = rows[[c for c in rows if not c.startswith("credit_step")]]
        names = ["alignment", "quality", "aesthetic"]
        sizes = {f"credit_step_{t}_{n}": rows[f"weight_step_{t}"] * rows[f"weight_{n}"] for t in range(6) for n in names}
        rows.assign(**sizes if seed else {}).to_csv(copy, index=False)
    draw_training(tmp_path / "runs", ["otca"], tmp_path / "few")
    assert {p.stem for p in (tmp_path / "few").iterdir()} == {"curves", "curves-evaluations"}


def test_seconds_are_the_published_ones_or_those_beside_the_run(tmp_path):
    folder = tmp_path / "otca@x/seed3"
    folder.mkdir(parents=True)
    assert train_seconds(tmp_path) == {}
    (folder / "cost.json").write_text('{"train_seconds": 7.5, "evaluate_seconds": 1, "hardware": "own"}')
    assert train_seconds(tmp_path) == {("otca@x", "seed3"): Timed(7.5, "own")}
    (tmp_path / "cost.csv").write_text("method,seed,train_seconds,evaluate_seconds,hardware\notca@x,3,8.5,1,machine\n")
    assert train_seconds(tmp_path) == {("otca@x", "seed3"): Timed(8.5, "machine")}


@pytest.mark.parametrize(
    "made_on, widest",
    [
        ("a:old b:old c:new c:new c:new", "old"),  # two methods against one
        ("a:old b:old a:new b:new b:new", "new"),  # two against two, of three runs
        ("a:old a:new", "new"),  # by name
    ],
)
def test_the_widest_hardware_has_most_methods_then_most_runs(made_on, widest):
    assert widest_hardware(tuple(run.split(":")) for run in made_on.split()) == widest


def test_seconds_are_compared_on_one_kind_of_hardware():
    """Methods a and b ran on the old machine, one seed of b and that of c on another; 4 seconds of 2 iterations are 2 each."""
    frames = {"a": [frame(length=2)] * 2, "b": [frame(1.0, 2), frame(2.0, 2)], "c": [frame(length=2)]}
    timed = {"a": [Timed(4.0, "old")] * 2, "b": [Timed(9.0, "new"), Timed(6.0, "old")], "c": [Timed(8.0, "new")]}
    alike, note = on_one_hardware(frames, timed)
    seconds = {method: [rows["seconds"].tolist() for rows in of_seed] for method, of_seed in alike.items()}
    assert seconds == {"a": [[2, 4], [2, 4]], "b": [[3, 6]]}
    assert alike["b"][0]["reward_quality"].tolist() == [2.0, 2.0]
    assert note == "Runs on old. Left out, having run on another: b (1 of 2 runs); c."
    assert on_one_hardware({"a": frames["a"]}, {"a": timed["a"]})[1] == "Runs on old."


def test_the_figure_over_seconds_names_its_hardware_and_keeps_the_methods_looks(tmp_path):
    """Of otca@x and otca@y the first ran elsewhere: the second is dotted all the same, as it is beside the first."""
    costs = "method,seed,train_seconds,evaluate_seconds,hardware\notca@x,0,9,1,new\notca@y,0,8,1,old\notca,0,8,1,old\n"
    for method in ("otca", "otca@x", "otca@y"):
        (tmp_path / f"runs/{method}/seed0").mkdir(parents=True)
        frame().assign(network_evaluations=range(12)).to_csv(tmp_path / f"runs/{method}/seed0/train.csv", index=False)
    (tmp_path / "runs/cost.csv").write_text(costs)
    draw_training(tmp_path / "runs", ["otca", "otca@x", "otca@y"], tmp_path)
    whole, seconds = ((tmp_path / f"curves{suffix}.svg").read_text() for suffix in ("", "-seconds"))
    assert "<!-- otca@x -->" in whole and "<!-- otca@x -->" not in seconds and "<!-- otca@y -->" in seconds
    assert "Runs on old. Left out, having run on another: otca@x." in words(seconds)
    dashes = [set(re.findall(r"stroke-dasharray: ([^;]+)", drawn)) for drawn in (whole, seconds)]
    assert len(dashes[0]) == 2 and len(dashes[1]) == 1 and dashes[1] < dashes[0]
    assert method_styles(["otca", "otca@x", "otca@y"])["otca@y"] != method_styles(["otca", "otca@y"])["otca@y"]
