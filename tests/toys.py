"""Settings of the smallest real training run: two toy rewards, two groups of three samples, one iteration."""

from __future__ import annotations

REWARDS = ["tests.test_baselines:Red", "tests.test_baselines:Blue"]


def toy_settings(method: str, pipeline: str, **changes: object) -> dict[str, object]:
    """Dotted settings of a run of ``method`` on the pipeline folder; ``changes`` win (dotted names by ``**{...}``)."""
    return {
        "method": method,
        "policy.path": pipeline,
        "rewards": REWARDS,
        "prompts_per_iteration": 2,
        "group_size": 3,
        "micro_batch": 3,
        "iterations": 1,
        "sampler.steps": 6,
    } | changes
