"""Static-weighted multi-reward GRPO: each objective is standardised in its group, then mixed with fixed weights.

The multi-reward rule of MixGRPO's and DanceGRPO's recipes (arXiv 2507.21802, 2505.07818), one fused advantage for all
steps. It is Table 4's "neither" row: OTCA without TCD and without MOCA. Differs from both in training every step
but the noiseless last one, and from DanceGRPO in mixing the objectives before the clip instead of clipping each (`dance_grpo`).
"""

import torch

from otca.config import TrainConfig
from otca.methods import Method, static_TBK, zscore_advantage_BK
from otca.types import Scores, Trajectory


def assign(rollout: Trajectory, scores: Scores, config: TrainConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Fixed weights w_k at every step, per-objective z-scores."""
    return static_TBK(rollout, config), zscore_advantage_BK(rollout, scores, config)


METHOD = Method("static_multi_reward", "static-weighted multi-reward GRPO: weighted per-objective z-scores", assign)
