"""Differences of an ablation's variants from what they vary, seeds paired: `results/pairs/ablations-*.md`.

A table tells every arm's difference from one baseline, and its means are over each arm's own seeds. What a variant changes is
its difference from its own method on the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from eval.markup import Grid
from eval.stats import holm
from eval.tables import build_table, difference_columns


def varied(name: str, names: Collection[str]) -> str | None:
    """What a variant changes, if ``names`` has it: ``m@a`` of ``m@a-b``, otherwise the method ``m``; None for a method itself."""
    method, _, variant = name.partition("@")
    for own in (f"{method}@{variant.rpartition('-')[0]}", method):
        if own != name and own in names:
            return own
    return None


def variant_differences(rows: pd.DataFrame, modality: str) -> pd.DataFrame:
    """Rows of `build_table` for every variant whose original is there, one a metric, and a column ``pairs`` (seeds of both).

    rows: as of `eval.tables.collect`. ``baseline`` is the original; p is Holm-adjusted over the variants within a metric.
    """
    names, parts = list(rows["method"].unique()), []
    for name in names:
        own = varied(name, names)
        if own is not None:
            table = build_table(rows[rows["method"].isin([own, name])], own, modality=modality)
            pairs = table.groupby("metric")["n_seeds"].min()
            parts.append(table[table["method"] == name].assign(pairs=lambda part, of=pairs: part["metric"].map(of)))
    if not parts:
        return pd.DataFrame()
    made = pd.concat(parts)
    return made.assign(p_paired=made.groupby("metric")["p_paired"].transform(holm))


def variant_grid(made: pd.DataFrame, metric: str) -> Grid:
    """One metric of `variant_differences` as a table: the variant, its original, and `difference_columns`."""
    part = made[made["metric"] == metric]
    names = {head: [(name, False) for name in part[column]] for head, column in (("Variant", "method"), ("Of", "baseline"))}
    return names | difference_columns(part, part["pairs"])
