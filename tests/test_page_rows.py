"""The tables' caption, as the page says it."""

from __future__ import annotations

import pytest

from eval.markup import markdown
from eval.page.markdown import plain
from eval.stats import bootstrap_interval
from eval.tables import CAPTION


def test_the_caption_of_tables_is_plain_and_says_what_few_seeds_give():
    """Nothing in it is markup, so the page says it as it is; an interval of 2 to 4 seeds goes from the lowest to the highest."""
    assert markdown(CAPTION) == plain(CAPTION) == CAPTION and "(of 2 to 4 seeds: lowest to highest)" in CAPTION
    values = [0.1, 0.7, 0.2, 0.4, 0.5]
    for n in (2, 3, 4):
        assert bootstrap_interval(values[:n]) == pytest.approx((0.1, max(values[:n])))
    low, high = bootstrap_interval(values)
    assert 0.1 < low < high < 0.7
