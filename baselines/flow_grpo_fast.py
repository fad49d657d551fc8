"""Flow-GRPO-Fast (of the Flow-GRPO repository, 2025): only the first two steps are stochastic and trained, ODE after.

Differs from its source, which branches after a shared ODE prefix in the first half of the steps, in starting at the first
step; static weights of z-scored rewards, so that the selection of steps is all that sets it apart.
"""

from baselines.static_multi_reward import assign
from otca.methods import Method

METHOD = Method(
    "flow_grpo_fast",
    "Flow-GRPO-Fast: static weights, SDE and training in the first two steps only",
    assign,
    settings={"step_selection.kind": "first_k", "step_selection.count": 2},
)
