"""The probe of a finished run: how its method credits one fixed stochastic rollout of a few prompts, step by step.

Prompts and noise are the same for every run, so curves of different methods and seeds stand side by side. What is shown beside
pictures comes from here; nothing of it enters a table.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from eval.evaluate import write_rows
from otca.config import EvalConfig, TrainConfig
from otca.distributed import is_main
from otca.methods import Method, assign_credit
from otca.models.base import Policy
from otca.prompts import evaluation_prompts
from otca.rewards.base import Reward
from otca.sampling import make_batch, plan_of
from otca.trainer import collect
from otca.types import Credit, Prompt, Scores, Trajectory

ROWS = "probe.csv"
COLUMNS = ["prompt_id", "step", "sigma", "objective", "reward", "credit"]
MOST_PROMPTS = 7


def shown_prompts(evaluation: EvalConfig) -> list[Prompt]:
    """The first prompt of each skill of an evaluation, or its first prompts where they have no skills."""
    chosen: dict[str, Prompt] = {}
    for prompt in evaluation_prompts(evaluation):
        chosen.setdefault((prompt.spec or {}).get("skill", prompt.id), prompt)
    return list(chosen.values())[:MOST_PROMPTS]


def credited(policy: Policy, method: Method, config: TrainConfig, rewards: list[Reward], prompts: list[Prompt]):
    """A group of samples for each prompt, all steps stochastic but the last, and their credit: (Trajectory, Scores, Credit)."""
    plan = plan_of(config, policy.shift, config.micro_batch, selection="all")
    batch = make_batch(prompts, list(range(len(prompts))), config.group_size, ("probe",), config.sampler.shared_noise)
    sampled, scores, _ = collect(policy, batch, plan, rewards, method.needs(config), config)
    return sampled, scores, assign_credit(method, sampled, scores, config)


def rows_of(sampled: Trajectory, scores: Scores, credit: Credit, group_size: int) -> pd.DataFrame:
    """Signed credit of the first sample of every group, a row a step and objective ("all" where a method credits one sum)."""
    reward_BK, names = scores.reward_BK, scores.names
    if credit.advantage_TBK.shape[2] == 1:  # a method that credits one sum of the objectives
        reward_BK, names = reward_BK.mean(1, keepdim=True), ("all",)
    rows = []
    for first in range(0, len(sampled.prompts), group_size):
        for t in np.flatnonzero(sampled.trained_T.numpy()):
            for k, name in enumerate(names):
                reward, share = float(reward_BK[first, k]), float(credit.advantage_TBK[t, first, k])
                rows.append((sampled.prompts[first].id, int(t), float(sampled.sigma_S[t]), name, reward, share))
    return pd.DataFrame(rows, columns=COLUMNS)


def probe(
    policy: Policy, method: Method, config: TrainConfig, rewards: list[Reward], evaluation: EvalConfig, folder: Path
) -> None:
    """Write ``probe.csv`` into a run's folder; methods that do not credit the steps of a rollout have none."""
    if method.forward_loss:
        return
    found = credited(policy, method, config, rewards, shown_prompts(evaluation))
    if is_main():
        write_rows(rows_of(*found, config.group_size), folder / ROWS)
