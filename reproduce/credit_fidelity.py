"""Does a method credit the right steps? Credits of every method against Monte-Carlo truth.

    python -m reproduce.credit_fidelity --modality image            train, sample and measure what is missing, write results
    python -m reproduce.credit_fidelity --modality image --render   rebuild tables and figures from the published truth sets
    python -m reproduce.credit_fidelity --modality image --truth published   credit anew, without the hours that the truth takes

Every method reads the same recorded trajectories, so they differ in credit alone; settings that change the sampling do not act,
but steps that a method does not train get no credit (windows stand as in the first iteration). Left out: GRPO-Guard and
DiffusionNFT, whose credit is static weighting's; what they change is the loss.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from baselines import find_method
from eval import truth_set
from eval.evaluate import write_rows
from eval.fidelity import (
    AXES,
    Truth,
    correlations_RK,
    initial_noise_share_RK,
    interval,
    misallocated_share_RK,
    profile_RTK,
    reliability_RK,
    resampled_counts,
    truth_of,
    worthless_TBK,
)
from eval.figures import credit_profiles
from eval.markup import Grid, markdown, markdown_table, number, show
from eval.markup import interval as interval_text
from otca.config import TrainConfig
from otca.errors import InputError
from otca.files import model_identity, resolve_model, write_atomic
from otca.methods import Method
from otca.sampling import select_steps
from otca.types import Needs, Scores, Trajectory
from reproduce.run import run_script, script
from reproduce.truth import HEAD, SEED, STAGES, STUDIES, Study, load_draws, load_trajectories, load_values, tasks, valuation_of
from reproduce.variants import credit_config
from reproduce.workers import run_tasks

FOLDER = Path("results/credit_fidelity")
RESAMPLES = 2000
WORTHLESS = "worthless_share"
"""Name of the axis of what is no correlation: the share of credit on worthless cells."""
COMPARED, RIVALS = "process_credit", ("uniform_grpo", "static_multi_reward", "otca_tcd")
"""Whose correlation with the truth is given as a multiple of each rival's."""
COLUMNS = ["modality", "stage", "method", "objective", "axis", "correlation", "ci_low", "ci_high", "reliability"]
SAME = 1e-5
"""How far the final rewards of trajectories may be from the published ones to count as the same."""

READINGS = (
    *("uniform_grpo", "static_multi_reward", "otca_tcd", "otca_tcd@x0_hat"),
    *("otca_tcd@permuted", "otca_tcd@averaged", "flow_grpo", "dance_grpo", "mix_grpo", "flow_grpo_fast", "tempflow_grpo"),
    *("coca", "gdpo", "otca_moca@rho0", "otca_moca", "otca", "otca@x0_hat"),
    *("dense_grpo", "process_credit@clean-raw", "process_credit@clean-decay0", "process_credit@clean"),
    *("process_credit@completion2", "process_credit", "process_credit@whole", "process_credit@raw"),
    *("process_credit@decay0", "process_credit@decay.6", "process_credit@decay1"),
    *("process_credit@early3", "process_credit@even3", "process_moca", "moca_step", "value_head"),
)
"""What is compared; weights that differ by a factor alone (TCD's ``sum``) agree alike."""

DRAWN = ("static_multi_reward", "otca_tcd", "otca_tcd@x0_hat", "otca", "tempflow_grpo", "process_credit", "value_head")
"""The readings whose profiles are drawn."""
DRAWN_CAPTION = (
    "Root mean square of the credit of a step over all samples, over that of all steps. Band: 95 % of "
    "the truth over resampled prompts, its own error taken off. coca and dense_grpo, which standardise every step, run as "
    "static_multi_reward does."
)


def credit_TBK(reading: str, config: TrainConfig, sampled: Trajectory, final: Scores, values: dict) -> np.ndarray:
    """Signed credit · advantage of a reading at all steps but the last, one column an objective (fused ones repeat)."""
    config, method = credit_config(reading, config), find_method(reading.partition("@")[0])
    by = HEAD if Needs.VALUE_HEAD in method.needs(config) else valuation_of(config.credit)
    scores = dataclasses.replace(final, state_reward_SBK=values[by])
    factors = method.assign(sampled, scores, config)
    product_TBK = torch.where(chosen_T(method, config).view(-1, 1, 1), factors[0] * factors[1], 0.0)[sampled.trained_T].numpy()
    return np.broadcast_to(product_TBK, (*product_TBK.shape[:2], len(config.rewards)))


def chosen_T(method: Method, config: TrainConfig) -> torch.Tensor:
    """Which steps a method trains, at the first iteration of a run: bool (T,)."""
    own = {key.removeprefix("step_selection."): value for key, value in method.settings.items() if "step_selection." in key}
    chosen = dataclasses.replace(config.step_selection, **own)
    return select_steps(chosen, config.sampler.steps, 0, np.random.default_rng(SEED))[1]


def truth_file(modality: str, stage: str) -> Path:
    """Where the truth set of a stage is; the base model's is the one that rules of credit are tested on."""
    return FOLDER / f"truth-{modality}{'' if stage == STAGES[0] else f'-{stage}'}.safetensors"


def published_truth(study: Study, stage: str, final_BK: np.ndarray) -> Truth:
    """The published truth about trajectories made anew. Raises InputError unless they end in the published rewards."""
    truth = truth_set.truth_of(truth_set.load(truth_file(study.modality, stage))[0])
    off = np.abs(truth.final_BK - final_BK).max() if truth.final_BK.shape == final_BK.shape else np.inf
    if off > SAME:
        raise InputError(
            f"the {study.modality} trajectories of stage {stage!r} end otherwise here than published, by up to {off:.2g} "
            f"in a reward; leave out --truth published, and the truth about these is measured"
        )
    return truth


def measure(study: Study, published: bool = False) -> None:
    """Write every stage's truth set, with every reading's credit; ``published``: of the truth that is there."""
    config = study.config
    said = {"objectives": ",".join(study.objectives), "continuations": str(study.draws), "policy": config.policy.path}
    said["sha256"] = model_identity(resolve_model(config.policy.path)).get("sha256", "")
    for stage in STAGES:
        (sampled, final), values = load_trajectories(study, stage), load_values(study, stage)
        final_BK = final.reward_BK.numpy()
        truth = published_truth(study, stage, final_BK) if published else truth_of(load_draws(study, stage).numpy(), final_BK)
        credits = {reading: credit_TBK(reading, config, sampled, final, values) for reading in READINGS}
        arrays = (tensor.numpy() for tensor in (sampled.latents_SB, sampled.sigma_S, sampled.group_B))
        truth_set.write(truth_file(study.modality, stage), *arrays, truth, said | {"stage": stage}, credits)


def render(modality: str) -> Grid:
    """Published truth sets → fidelity.csv (all modalities), stages.csv, fidelity.md, profiles; returns the means over stages."""
    fidelity, stages = [], []
    for stage in STAGES:
        arrays, truth, credits, names = read(modality, stage)
        group_B = arrays["group_B"]
        counts_RP = resampled_counts(len(np.unique(group_B)), RESAMPLES)
        reliability = reliability_RK(truth, group_B, counts_RP)
        noise, worthless = initial_noise_share_RK(truth, group_B, counts_RP), worthless_TBK(truth, group_B)
        measured = {}
        for reading, credit in credits.items():
            measured |= {(reading, axis): correlations_RK(credit, truth, group_B, counts_RP, axis) for axis in AXES}
            measured[reading, WORTHLESS] = misallocated_share_RK(credit, truth, group_B, counts_RP)
        measured |= {(COMPARED, f"over_{r}"): measured[COMPARED, "pooled"] / measured[r, "pooled"] for r in RIVALS}
        for k, name in enumerate(names):
            row = {"modality": modality, "stage": stage, "objective": name}
            stages.append(
                row
                | {"trajectories": len(group_B), "groups": counts_RP.shape[1], "continuations": STUDIES[modality].draws}
                | {"reward_sd": truth.final_BK[:, k].std()}
                | {"reliability": reliability[0, k], "reliability_se": reliability[1:, k].std()}
                | {"initial_noise_share": noise[0, k], "initial_noise_share_se": noise[1:, k].std()}
                | {"worthless_cells": worthless[:, :, k].mean()}
            )
            for (reading, axis), value_RK in measured.items():
                found = dict(zip(("correlation", "ci_low", "ci_high"), interval(value_RK[:, k])))
                fidelity.append(row | {"method": reading, "axis": axis} | found | {"reliability": reliability[0, k]})
        sigma_T = arrays["sigma_S"][: len(truth.increment_TBK)]
        profiles = {"truth": profile_RTK(truth.increment_TBK, group_B, counts_RP, truth.error_TBK)}
        profiles |= {reading: profile_RTK(credits[reading], group_B, counts_RP) for reading in DRAWN}
        credit_profiles(profiles, sigma_T, names, FOLDER / modality / f"{stage}-profiles", DRAWN_CAPTION)
    fidelity, stages = pd.DataFrame(fidelity)[COLUMNS], pd.DataFrame(stages)
    write_rows(stages, FOLDER / modality / "stages.csv")
    write_atomic(FOLDER / modality / "fidelity.md", report(fidelity, stages))
    path = FOLDER / "fidelity.csv"
    if path.exists():
        others = pd.read_csv(path)
        fidelity = pd.concat([others[others["modality"] != modality], fidelity]).sort_values("modality", kind="stable")
    write_rows(fidelity, path)
    return means_of(fidelity[fidelity["modality"] == modality], "pooled")


def report(fidelity: pd.DataFrame, stages: pd.DataFrame) -> str:
    """Text of fidelity.md: how good the truth is, means over the stages, and `COMPARED` beside its rivals."""
    quality = {
        "Stage": list(stages["stage"]),
        "Objective": list(stages["objective"]),
        "Reliability (SE)": [f"{r.reliability:.2f} ({r.reliability_se:.2f})" for r in stages.itertuples()],
        "Initial noise": [number(value, 2) for value in stages["initial_noise_share"]],
        "Worthless cells": [number(value, 2) for value in stages["worthless_cells"]],
    }
    ratios = fidelity[fidelity["axis"].str.startswith("over_")]
    cells = [number(r.correlation, 2) + interval_text(r.ci_low, r.ci_high, 2) for r in ratios.itertuples()]
    cells = ratios.assign(cell=cells).set_index(["axis", "stage", "objective"])["cell"].unstack("objective", sort=False)
    compared = {"Over": [axis[5:] for axis, _ in cells.index], "Stage": [stage for _, stage in cells.index]}
    first = stages.iloc[0]
    parts = [
        "# Credit fidelity",
        f"{first['trajectories']} trajectories of {first['groups']} prompts a stage, every state continued "
        f"{first['continuations']} times. Initial noise: the share of a reward's variance in its group that is decided before "
        "the first step. Every estimate with its interval is in `fidelity.csv`.",
        markdown_table(quality),
        "## Pooled correlation with the true credit, and share of credit on worthless cells: means over the stages",
        markdown_table(means_of(fidelity, "pooled", WORTHLESS)),
        "## Correlation over the steps of a trajectory, and over samples at a step: means over the stages",
        markdown_table(means_of(fidelity, "step", "sample")),
        f"## Pooled correlation of {markdown(COMPARED)} as a multiple of another's",
        markdown_table(compared | {name: list(cells[name]) for name in cells}),
    ]
    return "\n\n".join(parts) + "\n"


def means_of(fidelity: pd.DataFrame, *axes: str) -> Grid:
    """Means over the stages: a row a method, a column an axis and objective."""
    means = fidelity.groupby(["axis", "method", "objective"], sort=False)["correlation"].mean()
    grid: Grid = {"Method": list(fidelity["method"].unique())}
    for axis in axes:
        wide = means[axis].unstack("objective", sort=False).reindex(grid["Method"])
        grid |= {f"{axis.replace('_', ' ')}, {name}": [number(value, 2) for value in wide[name]] for name in wide}
    return grid


def read(modality: str, stage: str) -> tuple[dict[str, np.ndarray], Truth, dict[str, np.ndarray], list[str]]:
    """A published truth set: its arrays, the truth, each reading's credit, and the objectives' names."""
    path, again = truth_file(modality, stage), f"python -m reproduce.credit_fidelity --modality {modality}"
    if not path.is_file():
        raise InputError(f"{path} not found; make it with {again}")
    arrays, metadata = truth_set.load(path)
    if missing := [reading for reading in READINGS if f"credit/{reading}" not in arrays]:
        raise InputError(f"{path} has no {', '.join(missing)}; add it with {again} --truth published")
    credits = {reading: arrays[f"credit/{reading}"].astype(float) for reading in READINGS}
    return arrays, truth_set.truth_of(arrays), credits, metadata["objectives"].split(",")


def main(argv: list[str] | None = None) -> int:
    parser = script("credit_fidelity", __doc__, "--modality", "--jobs")
    parser.add_argument("--render", action="store_true", help="only rebuild tables and figures from published truth sets")
    again = "published: make the trajectories again, check that they are the published ones, and take the truth of these"
    parser.add_argument("--truth", choices=("measured", "published"), default="measured", help=again)
    return run_script(parser, _make, argv)


def _make(args: argparse.Namespace) -> None:
    study, published = STUDIES[args.modality], args.truth == "published"
    if not args.render:
        for independent in tasks(study, continued=not published):
            run_tasks(independent, args.jobs)
        measure(study, published)
    said = f"Correlation with the true credit, pooled, means over stages ({args.modality})"
    show(said, render(args.modality), f"written: {FOLDER}")


if __name__ == "__main__":
    sys.exit(main())
