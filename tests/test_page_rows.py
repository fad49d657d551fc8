"""The tables' caption of intervals, and `results/README.md` of training rows."""

from __future__ import annotations

import csv
import re

import pytest

from eval.markup import markdown
from eval.page.markdown import plain
from eval.stats import bootstrap_interval
from eval.tables import CAPTION
from tests.pages import RESULTS

ONE_SUM = ("uniform_grpo", "flow_grpo", "gdpo", "coca")


def test_columns_that_some_training_rows_lack_are_told():
    """`results/README.md`: which runs have neither skipped updates nor credit by step, and which methods credit one sum."""
    lacking = {}
    for path in RESULTS.glob("*/*/*/seed*/train.csv"):
        with path.open() as file:
            header = next(csv.reader(file))
        medium, tier, method = path.parts[-5:-2]
        new = "skipped_updates" in header
        summed = method.partition("@")[0] in ONE_SUM
        assert any(re.match(r"weight_(?!step_\d)", name) for name in header) == (not summed), path
        assert any(name.startswith("credit_step_") for name in header) == (new and not summed), path
        lacking.setdefault(f"{medium}/{tier}", []).append(not new)
    [line] = [line for line in (RESULTS / "README.md").read_text().splitlines() if line.startswith("| `<run>/train.csv`")]
    assert f"(not {', '.join(f'`{name}`' for name in ONE_SUM)} and their variants" in line
    assert sorted(place for place, of_run in lacking.items() if all(of_run)) == ["image/study", "video/quick"]
    assert [place for place, of_run in lacking.items() if 0 < sum(of_run) < len(of_run)] == ["image/quick"]
    some = lacking["image/quick"]
    assert f"all of `image/study` and `video/quick`, and {sum(some)} of the {len(some)} of `image/quick`." in line


def test_the_caption_of_tables_is_plain_and_says_what_few_seeds_give():
    """Nothing in it is markup, so the page says it as it is; an interval of 2 to 4 seeds goes from the lowest to the highest."""
    assert markdown(CAPTION) == plain(CAPTION) == CAPTION and "(of 2 to 4 seeds: lowest to highest)" in CAPTION
    values = [0.1, 0.7, 0.2, 0.4, 0.5]
    for n in (2, 3, 4):
        assert bootstrap_interval(values[:n]) == pytest.approx((0.1, max(values[:n])))
    low, high = bootstrap_interval(values)
    assert 0.1 < low < high < 0.7
