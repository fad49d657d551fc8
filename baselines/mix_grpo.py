"""MixGRPO (Li et al. 2025, arXiv 2507.21802): noise and gradient only in a sliding window of steps, ODE elsewhere.

Differs from its source in the number of steps (there 25, of which the window of 4 covers a sixth); window and stride are
the source's. So the window stands still for 25 iterations, which is longer than the quick tier trains.
"""

from baselines.static_multi_reward import assign
from otca.methods import Method

METHOD = Method(
    "mix_grpo",
    "MixGRPO: static weights, SDE and training in a sliding window of 4 steps, ODE elsewhere",
    assign,
    settings={
        "sampler.kind": "flow_sde",
        "sampler.level": 0.7,
        "step_selection.kind": "window",
        "step_selection.count": 4,
        "step_selection.stride": 25,
    },
)
