"""eval.pairs: a variant is compared with what it varies, on the seeds that both have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.pairs import variant_differences, variant_grid, varied
from eval.tables import collect

RESULTS = Path(__file__).parent.parent / "results"


@pytest.mark.parametrize(
    ("name", "names", "own"),
    [
        ("otca@T10", ["otca", "otca@T10"], "otca"),
        ("otca_moca@rho0.1-rms", ["otca_moca", "otca_moca@rho0.1", "otca_moca@rho0.1-rms"], "otca_moca@rho0.1"),
        ("otca@3steps-equal", ["otca", "otca@3steps-equal"], "otca"),
        ("mix_grpo@equal", ["base", "mix_grpo@equal"], None),
        ("otca", ["otca", "otca@T10"], None),
    ],
)
def test_a_variant_varies_its_method_or_the_variant_that_it_extends(name, names, own):
    assert varied(name, names) == own


def test_variants_are_paired_on_shared_seeds_and_adjusted_together():
    """By hand: differences −.1 ± .01 and +.2 ± .1 over three seeds of ten; two p-values, adjusted by two and one."""
    noise = np.random.default_rng(0).normal(size=10)
    near, far = np.array([-0.11, -0.10, -0.09]), np.array([0.1, 0.2, 0.3])
    values = {"otca": noise, "otca@T5": noise[:3] + near, "otca@T9": noise[:3] + far, "base": noise}
    rows = pd.DataFrame(
        [(m, seed, "accuracy", v, 1, 1, "x") for m, of in values.items() for seed, v in enumerate(of)],
        columns=["method", "seed", "metric", "value", "network_evaluations", "reward_calls", "hash"],
    )
    made = variant_differences(rows, "image").set_index("method")
    assert list(made.index) == ["otca@T5", "otca@T9"] and (made["baseline"] == "otca").all() and (made["pairs"] == 3).all()
    assert made["diff"].round(9).tolist() == [-0.1, 0.2]
    p = [stats.ttest_1samp(d, 0).pvalue for d in (near, far)]
    assert np.allclose(made["p_paired"], [2 * p[0], max(2 * p[0], p[1])])
    grid = variant_grid(made.reset_index(), "accuracy")
    assert [cell for cell, _ in grid["Of"]] == ["otca", "otca"]
    assert [cell for cell, _ in grid["Shows"]] == ["worse", "not distinguishable"]
    assert variant_differences(rows[rows["method"].isin(["otca", "base"])], "image").empty


def test_published_differences_of_variants_are_those_of_their_rows():
    """Twenty steps under static weighting against six, from the scores; the same text is in the published file."""
    pair = ["static_multi_reward", "static_multi_reward@T20"]
    rows = collect(RESULTS, "image", "cpu", pair)
    accuracy = rows[rows["metric"] == "accuracy"].pivot(index="seed", columns="method", values="value").dropna()
    d = accuracy[pair[1]] - accuracy[pair[0]]
    low, high = stats.t.interval(0.95, len(d) - 1, d.mean(), stats.sem(d))
    text = (RESULTS / "pairs" / "ablations-sampling-cpu.md").read_text().partition("Accuracy: difference of variants")[2]
    name, own = (n.replace("_", "\\_") for n in reversed(pair))
    assert f"| {name} | {own} | {d.mean():.3f} | [{low:.3f}, {high:.3f}] |" in text.replace("−", "-")
