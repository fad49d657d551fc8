"""What is said to be spent beforehand is what the trainer counts; of the rivals in tests/test_baselines.py."""

from __future__ import annotations

import pandas as pd
import pytest

from otca import presets
from otca.plan import costs_of
from reproduce.variants import affordable_iterations, named_arm
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


def test_equal_variants_spend_what_static_weighting_spends():
    """Nine steps, eight of them trained, with a KL: 41 evaluations a sample of static weighting, 17 where two are trained."""
    own = affordable_iterations("image", "quick", "static_multi_reward")
    assert own == presets.preset("image/quick")["iterations"]
    assert affordable_iterations("image", "quick", "flow_grpo_fast") == round(own * 41 / 17)
    assert affordable_iterations("image", "quick", "otca@1steps") == round(own * 41 / 13)
    arm = named_arm("image", "quick", "process_credit@completion2-equal", 1)
    settings = {"credit.process_completion": 2, "iterations": round(own * 41 / (41 + 8))}
    assert dict(arm.settings) == settings and str(arm.path) == "image/quick/process_credit@completion2-equal/seed1"
    assert dict(named_arm("image", "quick", "process_credit@equal", 1).settings) == {
        "iterations": round(own * 41 / (41 + 2 * 7 + 1))
    }
    assert dict(named_arm("image", "quick", "gdpo@equal", 0).settings) == {"iterations": own}
