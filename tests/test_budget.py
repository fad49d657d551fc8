"""What is said to be spent beforehand is what the trainer counts; of the rivals in tests/test_baselines.py."""

from __future__ import annotations

import pandas as pd
import pytest

from otca.plan import costs_of
from tests.toys import toy_config, trained

CASES = [
    ("otca", {"credit.sampled_steps": 2}),
    ("moca_step", {"credit.process_completion": 1}),
    ("process_moca", {}),
    ("process_credit", {"credit.process_completion": 3, "credit.process_states": 2}),
    ("process_credit", {"credit.process_states": 2, "credit.process_spread": "early"}),
    ("process_credit", {"credit.process_continuations": 2}),
    ("value_head", {}),
    ("process_credit", {"credit.process_completion": 0, "step_selection.kind": "first_k", "step_selection.count": 2}),
]


@pytest.mark.parametrize("name, changes", CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_predicted_evaluations_are_those_counted(untrained_pipeline, tmp_path, name, changes):
    trainer = trained(toy_config(name, untrained_pipeline, **{"group_size": 2, "micro_batch": 2} | changes), tmp_path)
    costs, row = costs_of(trainer.config, trainer.method), pd.read_csv(tmp_path / "train.csv").iloc[0]
    assert row["network_evaluations"] == 4 * costs.evaluations and row["reward_calls"] == 4 * 2 * costs.scored_media
    assert row.notna().all() and row["update_norm"] > 0
    assert row["first_ratio_deviation"] < (1e-5 if name == "otca" else 1e-12)  # drawn steps are batched anew
