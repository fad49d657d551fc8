"""What the README says in prose of differences is what the published rows say: number, side, and how far it holds."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from eval.pairs import variant_differences
from eval.tables import DIFFERENCE_HEADS, build_table, collect, difference_cells
from reproduce.ablations import FAMILIES
from reproduce.table1 import TABLE as TABLE_1
from reproduce.table2 import TABLE as TABLE_2
from reproduce.variants import SAMPLED

ROOT = Path(__file__).parent.parent
README = " ".join((ROOT / "README.md").read_text().split())
METRICS = ("alignment", "quality", "aesthetic", "accuracy")
TOLD = {"better": "told", "worse": "told", "better, unadjusted": "clear of 0", "worse, unadjusted": "clear of 0"}

CONSTANT = "costs summed raw rewards .035 of it and process credit .009, for more *aesthetic* (+.043 and +.018; all clear of 0)"
OWN = [
    ("sampling", "static_multi_reward@T20", "alignment", "keep more *alignment* (+.035, told)"),
    ("sampling", "static_multi_reward@T10", "alignment", "and ten do (+.026, clear of 0)"),
    ("sampling", "static_multi_reward@T20", "accuracy", "accuracy is higher by .039 (clear of 0)"),
    ("sampling", "otca@T5", "accuracy", "five steps cost it .019 in accuracy (told)"),
    ("stress", "uniform_grpo@scaled", "aesthetic", "*aesthetic* rises by .096 more (told)"),
    ("stress", "uniform_grpo@noise", "alignment", "lose *alignment* and accuracy (−.027 and −.019, clear of 0)"),
    ("stress", "uniform_grpo@noise", "accuracy", "lose *alignment* and accuracy (−.027 and −.019, clear of 0)"),
    ("stress", "otca@flipped", "alignment", "(−.029, −.030 and −.016, clear of 0)"),
    ("stress", "otca@flipped", "accuracy", "(−.029, −.030 and −.016, clear of 0)"),
    ("stress", "process_credit@flipped", "accuracy", "(−.029, −.030 and −.016, clear of 0)"),
    ("stress", "uniform_grpo@flipped", "quality", "summed raw rewards .007 of *quality* (told)"),
    ("stress", "uniform_grpo@constant", "quality", CONSTANT),
    ("stress", "process_credit@constant", "quality", CONSTANT),
    ("stress", "uniform_grpo@constant", "aesthetic", CONSTANT),
    ("stress", "process_credit@constant", "aesthetic", CONSTANT),
    ("budget", "otca@1steps", "aesthetic", "OTCA −.026 [−.129, .077]"),
    ("budget", "process_credit@1steps", "aesthetic", "process credit −.014 [−.046, .017]"),
]
"""Family, variant, metric, and the README's words for its difference from its own method on shared seeds."""

SIZED = "is not told from leaving it in any arm or objective"
QUIET = [
    ("sampling", "CPS and Flow-SDE, and groups of 4, 8 and 16, are not told apart", "{m}@cps {m}@G4 {m}@G8", SAMPLED),
    ("sampling", "OTCA does not gain from them", "{m}@T10 {m}@T20", ["otca"]),
    ("objective", SIZED, "{m}@rms", ["uniform_grpo", "gdpo", "otca_moca", "moca_step", "process_credit"]),
    ("objective", SIZED, "{m}@rho0-rms {m}@rho0.1-rms {m}@rho0.25-rms", ["otca_moca"]),
    ("budget", "nor from its own method in anything", "{m}@3steps {m}@1steps", ["otca", "otca_tcd", "process_credit"]),
]
"""Family, the README's words, and the variants that by these words nothing tells from their own methods."""

HEADLINE = [
    ("process_credit", "static_multi_reward", "better", "better"),
    ("process_credit", "uniform_grpo", "better, unadjusted", "better"),
    ("process_credit", "otca", "better, unadjusted", "better"),
    ("process_credit@equal", "static_multi_reward", "better, unadjusted", "better, unadjusted"),
    ("process_credit@equal", "uniform_grpo", "not distinguishable", "better, unadjusted"),
    ("process_credit@equal", "otca", "not distinguishable", "better"),
    ("process_credit@early3-equal40", "uniform_grpo", "not distinguishable", "not distinguishable"),
    ("otca", "static_multi_reward", "better, unadjusted", "not distinguishable"),
    ("otca", "uniform_grpo", "not distinguishable", "not distinguishable"),
    ("otca_tcd", "static_multi_reward", "not distinguishable", "worse, unadjusted"),
    ("otca_tcd", "uniform_grpo", "not distinguishable", "not distinguishable"),
    ("otca_moca", "static_multi_reward", "not distinguishable", "not distinguishable"),
    ("otca_moca", "uniform_grpo", "not distinguishable", "not distinguishable"),
]
"""Method, the one it is compared with, and what accuracy shows on images and on videos, as "What it shows" says."""


@cache
def variants(family: str) -> pd.DataFrame:
    """What every variant of a family changes, indexed by metric and name."""
    rows = collect(ROOT / "results", "image", "cpu", FAMILIES[family].rows("cpu"))
    made = variant_differences(rows[rows["metric"].isin(METRICS)], "image")
    return made.set_index(["metric", "method"], drop=False)


@cache
def accuracy(medium: str, against: str) -> pd.DataFrame:
    """Differences in accuracy of the rows of Table 1 or 2 from one of them, by method."""
    table = {"image": TABLE_1, "video": TABLE_2}[medium]
    rows = collect(ROOT / "results", medium, "cpu", table.rows("cpu"))
    return build_table(rows[rows["metric"] == "accuracy"], against, medium=medium).set_index("method")


def shown(row: pd.Series) -> str:
    return dict(zip(DIFFERENCE_HEADS, difference_cells(row, 3)))["Shows"]


@pytest.mark.parametrize(("family", "variant", "metric", "said"), OWN)
def test_differences_from_a_method_of_its_own_are_as_said(family, variant, metric, said):
    row = variants(family).loc[(metric, variant)]
    assert said in README
    size = f"{abs(row['diff']):.3f}".lstrip("0")
    assert re.search(rf"(?<![\d.]){re.escape(size)}(?!\d)", said)
    if re.search(rf"[+−]{re.escape(size)}", said):
        assert ("+" if row["diff"] > 0 else "−") + size in said
    if "[" in said:
        assert f"{row['diff_low']:.3f}, {row['diff_high']:.3f}".replace("-0.", "−.").replace("0.", ".") in said
    else:
        assert TOLD[shown(row)] in said


@pytest.mark.parametrize(
    ("family", "said", "variant"),
    [(family, said, name.format(m=m)) for family, said, names, methods in QUIET for m in methods for name in names.split()],
)
def test_variants_that_are_said_to_change_nothing_do_not(family, said, variant):
    of_variant = variants(family).xs(variant, level="method", drop_level=False)
    assert said in README and set(of_variant["metric"]) == set(METRICS)
    assert {shown(row) for _, row in of_variant.iterrows()} == {"not distinguishable"}


@pytest.mark.parametrize(("method", "against", "images", "videos"), HEADLINE)
def test_the_headline_shows_what_is_said(method, against, images, videos):
    assert shown(accuracy("image", against).loc[method]) == images
    assert shown(accuracy("video", against).loc[method]) == videos


def test_no_arm_of_the_ablations_is_told_from_static_weighting_but_process_credit():
    """In accuracy, after Holm's adjustment, at equal iterations or evaluations: the sentence of every family."""
    for name, family in FAMILIES.items():
        if name != "targets":
            table = (
                pd.read_csv(ROOT / "results" / family.name / "cpu" / "table.csv")
                .query("metric == 'accuracy'")
                .set_index("method")
            )
            told = {m for m in table.index.drop("static_multi_reward") if shown(table.loc[m]) in ("better", "worse")}
            assert told <= {"process_credit"}, name


def test_seconds_of_process_credit_are_as_measured():
    """For each second of static weighting's training, cpu tier: on videos of both rows, on images at equal evaluations."""
    measured = json.loads((ROOT / "results" / "speed" / "speed.json").read_text())
    whole = {name: measured[f"{name}_training"]["value"] for name in ("video_process_credit", "video_process_credit@equal")}
    equal, image = whole["video_process_credit@equal"], measured["image_process_credit@equal_training"]["value"]
    assert f"and {equal:.1f} and {whole['video_process_credit']:.1f} times the seconds (`results/speed/speed.json`)" in README
    assert f"takes {equal:.1f} times static weighting's seconds on videos and {image:.1f} times on images" in README


def test_the_gradient_signal_is_as_said():
    """Rises against aesthetic's and against their own errors, and what weighting steps by precision does to alignment."""
    rows = pd.read_csv(ROOT / "results" / "gradient_signal" / "signal.csv").set_index(["steps", "objective", "method"])
    credited = rows.loc["as credited"]
    others = pd.concat([credited.loc[[name]] for name in ("alignment", "quality")])
    ratios = credited.loc["aesthetic"]["signal"].reindex(others.index.get_level_values("method")).to_numpy() / others["signal"]
    assert (round(ratios.min()), round(ratios.max(), -1)) == (7, 20)
    errors = others["signal"] / others["standard_error"]
    assert (round(errors.min()), round(errors.max())) == (1, 2)
    assert "rises seven to twenty times as fast as the other two, whose rise is one to two standard errors" in README
    weighted = rows.drop("as credited", level="steps").droplevel("steps").loc["alignment"]
    rise = weighted["signal"] - credited.loc["alignment"]["signal"].reindex(weighted.index)
    assert (len(rise), (rise > 0).sum()) == (11, 10) and "under ten of eleven credits, under one of them (`@clean`)" in README
    assert list(rise.index[rise > 2 * weighted["standard_error"]]) == ["process_credit@clean"]
