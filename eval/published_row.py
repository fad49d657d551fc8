"""A method's row of a published table, for a model card: its primary metric beside the baseline's, and what it shows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from eval.markup import markdown, markdown_table
from eval.store import Store
from eval.tables import headline, primary_of, said

RESULTS = Path(__file__).parent.parent / "results"
"""The published tables of this repository; an installed copy may lack them."""


def published_row(results: Path, modality: str, tier: str, method: str, run_hash: str) -> list[str]:
    """Paragraphs of Markdown, all text in them plain; empty where no table of the modality and tier has the method.

    It is the first table by name below ``results``. ``run_hash``: it is said whether the row was made from that run too.
    """
    for path in sorted(path for path in results.rglob("table.csv") if path.parent.name == tier):
        table = pd.read_csv(path).assign(best=False)
        part = table[(table["modality"] == modality) & table["method"].isin([method, table["baseline"].iloc[0]])]
        if not (part["method"] == method).any():
            continue
        runs = Store(results, modality, tier).runs
        known = run_hash in set(runs.loc[runs["method"] == method, "hash"])
        where = f"{path.parent.relative_to(results).as_posix()} of the published results, {part['n_seeds'].max()} seeds"
        metric = primary_of(part, "accuracy")
        return [
            f"*{markdown(where)}*. This run is {'one' if known else 'not one'} of them.",
            markdown_table(headline(part, metric)),
            *([markdown(said(part, metric))] if method != part["baseline"].iloc[0] else []),
        ]
    return []
