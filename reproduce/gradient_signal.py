"""What a credit is worth to the update: how far each method's gradient carries each objective, against its noise.

    python -m reproduce.gradient_signal            sample, differentiate and score batches (about half an hour of one core)
    python -m reproduce.gradient_signal --render   rebuild the tables from the published products alone

Every method credits the same batches of the untrained image model, so methods differ in credit alone. The true gradient of an
objective is estimated by the reward less the value of each state (whole completions, λ = 1), unbiased whatever the value.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.progress import track

from baselines import find_method
from baselines.process_credit import process_advantage_TBK
from eval.evaluate import write_rows
from eval.markup import Grid, markdown_table, number, show
from eval.signal import Products, equalising_MT, jackknife_MK, signal_MK
from otca import presets
from otca.config import TrainConfig
from otca.files import write_atomic
from otca.models.base import Policy, build_policy
from otca.prompts import load_prompts, prompt_order
from otca.rewards.base import Reward, build_reward
from otca.sampling import condition_of, make_batch, plan_of, transition_at, velocity_at
from otca.state_values import process_values
from otca.trainer import collect
from otca.types import Needs, Scores, Trajectory
from reproduce.run import script
from reproduce.variants import credit_config

FOLDER, PRODUCTS = Path("results/gradient_signal"), "products.npz"
SEED = 301
"""Of prompts and noise; no table uses it."""
BATCHES, FOLDS = 80, 10
CAPTION = (
    "Rise of each objective along an update of unit length, × 10⁵, ± one standard error; by precision: steps weighted by the "
    "precision of their gradient, 1 / E|g|², as well."
)
METHODS = (
    *("uniform_grpo", "static_multi_reward", "otca_tcd", "otca_moca", "otca", "tempflow_grpo", "dense_grpo"),
    *("process_credit@clean", "process_credit@decay0", "process_credit", "process_credit@decay1"),
)


def advantages_XTB(
    config: TrainConfig, sampled: Trajectory, final: Scores, policy: Policy, rewards: list[Reward]
) -> torch.Tensor:
    """Advantage of every method, then of each objective's true gradient: (M + K, T, B)."""
    values: dict[int, torch.Tensor] = {}

    def valued(own: TrainConfig) -> Scores:
        length = own.credit.process_completion
        if length not in values:
            values[length] = process_values(policy, sampled, final.reward_BK, rewards, own)[0]
        return dataclasses.replace(final, state_reward_SBK=values[length])

    out = []
    for name in METHODS:
        own = credit_config(name, config)
        credit_TBK, advantage_BK = find_method(name.partition("@")[0]).assign(sampled, valued(own), own)
        out.append((credit_TBK * advantage_BK).sum(2))
    truth = dataclasses.replace(config, credit=dataclasses.replace(config.credit, process_completion=0, process_decay=1.0))
    return torch.stack([*out, *process_advantage_TBK(sampled, valued(truth), truth).unbind(2)])


def gradients_XTD(policy: Policy, config: TrainConfig, sampled: Trajectory, plan, advantage_XTB: torch.Tensor) -> torch.Tensor:
    """Gradient of mean advantage · log-probability at each trained step, one row an advantage: (X, T', D)."""
    parameters, steps = policy.trainable_parameters(), torch.nonzero(plan.trained_T).flatten().tolist()
    count = len(sampled.prompts)
    out = torch.zeros(len(advantage_XTB), len(steps), sum(p.numel() for p in parameters))
    for index, t in enumerate(steps):
        for first in range(0, count, config.micro_batch):
            rows = slice(first, first + config.micro_batch)
            x, condition = sampled.latents_SB[t, rows], condition_of(policy, sampled.prompts, rows)
            velocity = velocity_at(policy, x, t, sampled.sigma_S, condition)
            previous = sampled.latents_SB[t + 1, rows]
            log_prob_B = transition_at(plan, t, x, velocity, prev=previous)[1]
            for row, advantage_TB in enumerate(advantage_XTB):
                loss = (log_prob_B * advantage_TB[t, rows].to(log_prob_B)).sum() / count
                parts = torch.autograd.grad(loss, parameters, retain_graph=row + 1 < len(advantage_XTB))
                out[row, index] += torch.cat([part.flatten() for part in parts])
    return out


def measure(config: TrainConfig, batches: int, folds: int) -> Products:
    """Products of gradients of ``batches`` batches, in ``folds`` folds."""
    policy, rewards = build_policy(config.policy), [build_reward(name) for name in config.rewards]
    prompts, slots = load_prompts(config.prompts), config.prompts_per_iteration
    plan = plan_of(config, policy.shift, config.micro_batch, selection="all")
    methods, objectives, steps = len(METHODS), len(rewards), int(plan.trained_T.sum())
    sums_FXTD, cross = None, np.zeros((folds, folds, methods, steps, objectives))
    gram, count_F = np.zeros((folds, methods, steps, steps)), np.zeros(folds)
    for index in track(range(batches), "batches"):
        chosen = [prompts[i] for i in prompt_order(len(prompts), SEED, index * slots, slots)]
        batch = make_batch(chosen, list(range(slots)), config.group_size, ("gradient signal", SEED, index))
        sampled, final, _ = collect(policy, batch, plan, rewards, Needs.VELOCITY, config)
        advantage_XTB = advantages_XTB(config, sampled, final, policy, rewards)
        gradient_XTD = gradients_XTD(policy, config, sampled, plan, advantage_XTB)
        fold = index % folds
        own_MTK = torch.einsum("mtd,kd->mtk", gradient_XTD[:methods], gradient_XTD[methods:].sum(1))
        cross[fold, fold] -= own_MTK.double().numpy()
        gram[fold] += torch.einsum("mtd,msd->mts", gradient_XTD[:methods], gradient_XTD[:methods]).double().numpy()
        sums_FXTD = torch.zeros(folds, *gradient_XTD.shape) if sums_FXTD is None else sums_FXTD
        sums_FXTD[fold] += gradient_XTD
        count_F[fold] += 1
    truth_FKD = sums_FXTD[:, methods:].sum(2)
    cross += torch.einsum("fmtd,gkd->fgmtk", sums_FXTD[:, :methods], truth_FKD).double().numpy()
    return Products(cross, gram, count_F)


def write(products: Products, objectives: tuple[str, ...], path: Path) -> None:
    """The products and what their axes are, as one compressed numpy file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, methods=METHODS, objectives=objectives, **vars(products))
    write_atomic(path, buffer.getvalue())


def read(path: Path) -> tuple[Products, list[str], list[str]]:
    """What `write` wrote: products, methods, objectives."""
    with np.load(path) as arrays:
        products = Products(*(arrays[name] for name in ("cross_FFMTK", "gram_FMTT", "count_F")))
        return products, arrays["methods"].tolist(), arrays["objectives"].tolist()


def render(folder: Path = FOLDER) -> Grid:
    """signal.csv and signal.md from the published products; returns the table that signal.md shows."""
    products, methods, objectives = read(folder / PRODUCTS)
    alike_MT = np.ones(products.gram_FMTT.shape[1:3])
    schemes = {"as credited": alike_MT, "by precision": equalising_MT(products)}
    index = pd.MultiIndex.from_product([methods, objectives], names=["method", "objective"])
    parts = [
        pd.DataFrame({"signal": signal_MK(products, w).ravel(), "standard_error": jackknife_MK(products, w).ravel()}, index)
        for w in schemes.values()
    ]
    rows = pd.concat(parts, keys=schemes, names=["steps"])
    write_rows(rows.reset_index()[["method", "objective", "steps", "signal", "standard_error"]], folder / "signal.csv")
    cells = [f"{number(1e5 * v, 0)} ± {1e5 * e:.0f}" for v, e in rows.to_numpy()]
    wide = pd.Series(cells, rows.index).unstack(["objective", "steps"], sort=False)
    grid = {"Method": methods} | {", ".join(column): list(wide[column]) for column in wide}
    text = f"{int(products.count_F.sum())} batches of the untrained model. {CAPTION}\n\n{markdown_table(grid)}\n"
    write_atomic(folder / "signal.md", text)
    return grid


def main(argv: list[str] | None = None) -> int:
    parser = script("gradient_signal", __doc__)
    parser.add_argument("--render", action="store_true", help="only rebuild the table from the published products")
    args = parser.parse_args(argv)
    if not args.render:
        torch.set_num_threads(1)
        config = presets.train_config("image/quick", "static_multi_reward", {}, SEED)
        write(measure(config, BATCHES, FOLDS), tuple(build_reward(name).name for name in config.rewards), FOLDER / PRODUCTS)
    show("Signal of each method's gradient", render(), CAPTION)
    return 0


if __name__ == "__main__":
    sys.exit(main())
