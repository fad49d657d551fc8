"""Validation on the way: a run's own training rewards on prompts that it does not train on, and which checkpoint was best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator

from otca.checkpoint import checkpoints, iteration_of
from otca.config import TrainConfig
from otca.distributed import total
from otca.errors import InputError, one_line
from otca.files import verify_hashes
from otca.models.base import Policy
from otca.prompts import load_prompts
from otca.rewards.base import Reward, score_all
from otca.runs import RowLog
from otca.sampling import make_batch, ode_plan, rollout
from otca.types import Prompt

ROWS = "validation.csv"
"""File of a run's folder: one row a validation, ``mean_`` and ``std_`` of each reward, and the score."""


def rows_of(folder: Path, rewards: Sequence[str] = ()) -> list[dict[str, float]]:
    """The validations of a run so far. Raises InputError where they lack what is known of every one, and of these rewards."""
    if not (folder / ROWS).is_file():
        return []
    wanted = ["iteration", "score", *(f"{key}_{name}" for name in rewards for key in ("mean", "std"))]
    try:
        return pd.read_csv(folder / ROWS).astype(dict.fromkeys(wanted, float)).to_dict("records")
    except (ValueError, KeyError) as error:
        raise InputError(f"{folder / ROWS} holds no validations ({one_line(error)}); restore it, or delete it") from error


def best_iteration(rows: list[dict[str, float]]) -> int | None:
    """The iteration with the highest validation score, the earliest of equals; None without a validation."""
    return int(max(rows, key=lambda row: row["score"])["iteration"]) if rows else None


def chosen_checkpoint(run: Path, which: str) -> Path:
    """A run's verified checkpoint: the ``last``, the ``best`` in validation, or that of a number of iterations."""
    found, best = {iteration_of(path): path for path in checkpoints(run)}, best_iteration(rows_of(run))
    if not found:
        raise InputError(f"run {run} has no checkpoint; give a folder that `python -m otca train` wrote")
    if which == "best" and best is None:
        raise InputError(f"run {run} has no validation, so none of its checkpoints is best; train with validation.every")
    if which == "best" and best == 0:
        raise InputError(f"the best of {run} is the model before training; sample it without --run")
    number = {"last": max(found), "best": best}.get(which, int(which) if which.isdigit() else -1)
    if number not in found:
        there = ["last", *(["best"] if best in found else []), *map(str, found)]
        raise InputError(f"checkpoint {which!r} of {run} is not there (there are: {', '.join(there)})")
    verify_hashes(found[number])
    return found[number]


class Validation:
    """Rows of ``validation.csv``, one every ``config.validation.every`` iterations; the best so far."""

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        rewards: Sequence[Reward],
        accelerator: Accelerator,
        folder: Path,
        iteration: int,
        judge: Callable[[torch.Tensor, list[Prompt]], dict[str, Sequence[float]]] | None = None,
    ):
        """Rows of a former start stay up to ``iteration``, where the run goes on.

        ``judge`` adds columns of held-out metrics, (media, prompts) → {name: one number a sample}; the score is of the rewards.
        """
        self.config, self.policy, self.rewards, self.accelerator = config, policy, list(rewards), accelerator
        self.judge, self.every = judge, config.validation.every
        self.prompts = load_prompts(config.validation.source, config.validation.prompts) if self.every else []
        self.log = RowLog(folder / ROWS, iteration + 1, sparse=True) if self.every and accelerator.is_main_process else None
        accelerator.wait_for_everyone()
        self.rows = rows_of(folder, [reward.name for reward in rewards]) if self.every else []

    @property
    def best(self) -> int | None:
        return best_iteration(self.rows)

    def run_if_due(self, iteration: int) -> bool:
        """Validate where the schedule has a row that is not there yet; whether it is the best of several."""
        due = self.every and (iteration % self.every == 0 or iteration == self.config.iterations)
        if not due or any(row["iteration"] == iteration for row in self.rows):
            return False
        row = {"iteration": iteration} | self._scored()
        first = (self.rows or [row])[0]
        weights = dict(zip((r.name for r in self.rewards), self.config.weights_K))
        gains = {n: (row[f"mean_{n}"] - first[f"mean_{n}"]) / max(first[f"std_{n}"], 1e-12) for n in weights}
        row["score"] = float(f"{sum(weights[n] * gains[n] for n in weights):.9g}")  # as it will be read again
        self.rows.append(row)
        if self.log is not None:
            self.log.append(row)
        return iteration > 0 and self.best == iteration

    @torch.no_grad()
    def _scored(self) -> dict[str, float]:
        """Mean and standard deviation of every reward and held-out metric over the validation samples of all processes."""
        settings, rank, world = self.config.validation, self.accelerator.process_index, self.accelerator.num_processes
        slots, size = list(range(len(self.prompts))), self.config.micro_batch
        batch = make_batch(self.prompts, slots, settings.samples_per_prompt, ("validation", self.config.seed))
        plan = ode_plan(settings.steps, self.config.sampler.shift or self.policy.shift, size)
        values: list[torch.Tensor] = []
        for _, part in batch.parts(rank, world, size):
            media_BFCHW = rollout(self.policy, part, plan).media_BFCHW
            scores = score_all(self.rewards, media_BFCHW, part.prompts)
            judged = self.judge(media_BFCHW, part.prompts) if self.judge else {}
            held_out = [torch.as_tensor(value, dtype=torch.float64)[:, None] for value in judged.values()]
            values.append(torch.cat([scores.reward_BK.double(), *held_out], dim=1))
        value_NK = torch.cat(values)[: len(range(rank, len(batch.prompts), world))]  # without samples that come twice
        sums_3K = torch.stack([torch.ones_like(value_NK), value_NK, value_NK.square()]).sum(1)
        number_K, sum_K, squares_K = total(self.accelerator, sums_3K)
        mean_K = sum_K / number_K
        std_K = (squares_K / number_K - mean_K.square()).clamp(min=0).sqrt()
        found_2K = zip((*scores.names, *judged), mean_K.tolist(), std_K.tolist())
        return {f"{key}_{n}": float(f"{v:.9g}") for n, mean, std in found_2K for key, v in (("mean", mean), ("std", std))}
