"""Does a method credit the right steps? Credits of every method against Monte-Carlo truth (METHOD §2.3).

    python -m reproduce.credit_fidelity --medium image            train, sample and measure what is missing, write results
    python -m reproduce.credit_fidelity --medium image --render   rebuild tables and figures from the published cells alone

Every method reads the same recorded trajectories, so they differ in credit alone; settings that change the sampling do not act.
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
from eval.evaluate import write_rows
from eval.fidelity import (
    AXES,
    Truth,
    correlations_RK,
    interval,
    luck_RK,
    profile_RTK,
    reliability_RK,
    resampled_counts,
    truth_of,
    wasted_RK,
    worthless_TBK,
)
from eval.plot_credit import credit_profiles
from otca.config import TrainConfig
from otca.ending import run_command
from otca.errors import InputError
from otca.files import write_atomic
from otca.types import Rollout, Scores
from reproduce.readme import update_readme
from reproduce.truth import STAGES, STUDIES, Study, Valuation, load_draws, load_trajectories, load_values
from reproduce.variants import credit_config

FOLDER = Path("results/credit_fidelity")
RESAMPLES = 2000

READINGS = (
    *("uniform_grpo", "static_multi_reward", "otca_tcd", "otca_tcd@x0_hat", "otca_tcd@epsilon.01", "otca_tcd@epsilon.1"),
    *("otca_tcd@permuted", "otca_tcd@averaged", "tempflow_grpo", "coca", "gdpo", "otca_moca", "otca_moca@rho0", "otca"),
    *("dense_grpo", "process_credit@clean-raw", "process_credit@clean-decay0", "process_credit@clean"),
    *("process_credit@completion2", "process_credit", "process_credit@whole", "process_credit@raw"),
    *("process_credit@clean-preview", "process_credit@preview", "process_credit@regressed"),
    *("process_credit@decay0", "process_credit@decay.6", "process_credit@decay1", "moca_step"),
)
"""What is compared; weights that differ by a factor alone (TCD's ``sum``) agree alike."""

DRAWN = ("static_multi_reward", "otca_tcd", "tempflow_grpo", "coca", "dense_grpo", "process_credit")
"""The readings whose profiles are drawn."""

COMPARED, RIVALS, ASKED = "process_credit", ("uniform_grpo", "otca_tcd"), 2.0
"""Whose correlation with the truth is to be so many times that of each rival."""


def credit_TBK(
    reading: str, config: TrainConfig, sampled: Rollout, final: Scores, values: dict[Valuation, torch.Tensor]
) -> np.ndarray:
    """Signed credit · advantage of a reading at the trained steps, one column an objective (fused ones repeat)."""
    config = credit_config(reading, config)
    scores = dataclasses.replace(final, process_reward_SBK=values[Valuation.of(config.credit)])
    factors = find_method(reading.partition("@")[0]).assign(sampled, scores, config)
    product_TBK = (factors[0] * factors[1])[sampled.trained_T].numpy()
    return np.broadcast_to(product_TBK, (*product_TBK.shape[:2], len(config.rewards)))


def measure(study: Study) -> None:
    """Write the study's cells and stages to results: truth, its error and every credit, one row a (step, sample, objective)."""
    config = study.sampling
    for stage in STAGES:
        (sampled, final), values = load_trajectories(study, stage), load_values(study, stage)
        final_BK = final.reward_BK.numpy()
        truth = truth_of(load_draws(study, stage).numpy(), final_BK)
        shape = truth.increment_TBK.shape
        step, sample, objective = (axis.ravel() for axis in np.indices(shape))
        columns = {
            "group": sampled.group_B.numpy()[sample],
            "sample": sample,
            "step": step,
            "sigma": sampled.sigma_S.numpy()[step],
            "objective": np.array(study.objectives)[objective],
            "truth": truth.increment_TBK.ravel(),
            "error": truth.error_TBK.ravel(),
        }
        columns |= {reading: credit_TBK(reading, config, sampled, final, values).ravel() for reading in READINGS}
        write_rows(pd.DataFrame(columns), FOLDER / study.medium / f"{stage}-cells.csv.gz")
        sample, objective = (axis.ravel() for axis in np.indices(final_BK.shape))
        values = {"final": final_BK.ravel(), "start": truth.start_BK.ravel(), "start_error": truth.start_error_BK.ravel()}
        names = {"sample": sample, "objective": np.array(study.objectives)[objective]}
        write_rows(pd.DataFrame(names | values), FOLDER / study.medium / f"{stage}-samples.csv.gz")


def render(medium: str) -> Path:
    """Published cells → fidelity.csv (all media), stages.csv, fidelity.md and the profile figures."""
    fidelity, stages = [], []
    for stage in STAGES:
        cells, truth, credits, group_B, names = read_cells(FOLDER / medium, stage)
        counts_RP = resampled_counts(len(np.unique(group_B)), RESAMPLES)
        reliability = reliability_RK(truth, group_B, counts_RP)
        luck, worthless = luck_RK(truth, group_B, counts_RP), worthless_TBK(truth, group_B)
        for k, name in enumerate(names):
            stages.append(
                {"medium": medium, "stage": stage, "objective": name, "trajectories": len(group_B), "groups": counts_RP.shape[1]}
                | {"reward_sd": truth.final_BK[:, k].std(), "reliability": reliability[0, k]}
                | {"reliability_se": reliability[1:, k].std(), "luck": luck[0, k], "luck_se": luck[1:, k].std()}
                | {"worthless_cells": worthless[:, :, k].mean()}
            )
        pooled = {}
        for reading, credit in credits.items():
            resampled = {axis: correlations_RK(credit, truth, group_B, counts_RP, axis) for axis in AXES}
            pooled[reading] = resampled["pooled"]
            resampled["worthless_share"] = wasted_RK(credit, truth, group_B, counts_RP)
            for axis, value_RK in resampled.items():
                for k, name in enumerate(names):
                    row = (medium, stage, reading, name, axis, *interval(value_RK[:, k]), reliability[0, k])
                    fidelity.append(row)
        for rival in RIVALS:
            ratio_RK = pooled[COMPARED] / pooled[rival]
            for k, name in enumerate(names):
                fidelity.append((medium, stage, COMPARED, name, f"over_{rival}", *interval(ratio_RK[:, k]), reliability[0, k]))
        sigma_T = cells.groupby("step")["sigma"].first().to_numpy()
        profiles = {"truth": profile_RTK(truth.increment_TBK, group_B, counts_RP, truth.error_TBK)}
        profiles |= {reading: profile_RTK(credits[reading], group_B, counts_RP) for reading in DRAWN}
        credit_profiles(profiles, sigma_T, names, FOLDER / medium / f"{stage}-profiles")
    columns = ["medium", "stage", "method", "objective", "axis", "correlation", "ci_low", "ci_high", "reliability"]
    fidelity, stages = pd.DataFrame(fidelity, columns=columns), pd.DataFrame(stages)
    write_rows(stages, FOLDER / medium / "stages.csv")
    text = report(fidelity, stages)
    write_atomic(FOLDER / medium / "fidelity.md", text)
    update_readme(f"fidelity-{medium}", summary(fidelity, stages))
    path = FOLDER / "fidelity.csv"
    if path.exists():
        others = pd.read_csv(path)
        fidelity = pd.concat([others[others["medium"] != medium], fidelity]).sort_values("medium", kind="stable")
    write_rows(fidelity, path)
    return FOLDER / medium


def read_cells(folder: Path, stage: str) -> tuple[pd.DataFrame, Truth, dict[str, np.ndarray], np.ndarray, list[str]]:
    """Published cells as arrays: the rows, the truth, each reading's credit, the groups, and the objectives' names."""
    path = folder / f"{stage}-cells.csv.gz"
    if not path.is_file():
        raise InputError(f"{path} not found; make it with python -m reproduce.credit_fidelity --medium {folder.name}")
    cells, samples = pd.read_csv(path), pd.read_csv(folder / f"{stage}-samples.csv.gz")
    names = list(dict.fromkeys(cells["objective"]))
    shape = (cells["step"].nunique(), cells["sample"].nunique(), len(names))
    arrays = {column: cells[column].to_numpy().reshape(shape) for column in ("truth", "error", *READINGS)}
    of_samples = [samples[column].to_numpy().reshape(shape[1:]) for column in ("start", "start_error", "final")]
    truth = Truth(arrays.pop("truth"), arrays.pop("error"), *of_samples)
    group_B = cells[cells["step"] == 0].groupby("sample")["group"].first().to_numpy()
    return cells, truth, arrays, group_B, names


def report(fidelity: pd.DataFrame, stages: pd.DataFrame) -> str:
    """Tables of a medium: how good the truth is, then correlations on each axis, averaged over the stages' estimates."""
    lines = ["# Credit fidelity", "", "| Stage | Objective | Reliability (SE) | Luck of the initial noise | Worthless cells |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for row in stages.itertuples():
        quality = f"{row.reliability:.2f} ({row.reliability_se:.2f}) | {row.luck:.2f} | {row.worthless_cells:.2f}"
        lines.append(f"| {row.stage} | {row.objective} | {quality} |")
    names = list(dict.fromkeys(stages["objective"]))
    for axis in (*AXES, "worthless_share"):
        title = "Share of credit on worthless cells" if axis == "worthless_share" else f"Correlation with the truth: {axis}"
        heads = [f"{stage}, {name}" for stage in STAGES for name in names]
        lines += ["", f"## {title}", "", f"| Method | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
        part = fidelity[fidelity["axis"] == axis].set_index(["method", "stage", "objective"])
        for reading in READINGS:
            values = [part.loc[(reading, stage, name)] for stage in STAGES for name in names]
            lines.append(f"| {reading} | {' | '.join(_cell(value) for value in values)} |".replace("_", "\\_"))
    title = f"Correlation of {COMPARED} over that of another: pooled".replace("_", "\\_")
    lines += ["", f"## {title}", "", f"| Over | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for rival in RIVALS:
        part = fidelity[fidelity["axis"] == f"over_{rival}"].set_index(["stage", "objective"])
        values = " | ".join(_cell(part.loc[(stage, name)]) for stage in STAGES for name in names)
        lines.append(f"| {rival} | {values} |".replace("_", "\\_"))
    return "\n".join(lines) + "\n"


def summary(fidelity: pd.DataFrame, stages: pd.DataFrame) -> str:
    """The README's block: what the truth is made of, then pooled correlation and waste of each reading, means of the stages."""
    names = list(dict.fromkeys(stages["objective"]))
    first = stages.iloc[0]
    low, high = stages["reliability"].min(), stages["reliability"].max()
    worthless, luck = (stages.groupby("objective")[column].mean() for column in ("worthless_cells", "luck"))
    dashes = " – |" * len(names)
    lines = [
        f"{first.trajectories} trajectories at each of {len(STAGES)} stages of training; reliability of the truth {low:.2f} to "
        f"{high:.2f}. Means over the stages.",
        "",
        f"| Method | {' | '.join(names)} | {' | '.join(f'{name}: on worthless cells' for name in names)} |",
        "| --- |" + " ---: |" * (2 * len(names)),
        f"| (share of cells that are worthless) |{dashes} {' | '.join(f'{worthless[n]:.2f}' for n in names)} |",
        f"| (share of the reward that the initial noise decides) | {' | '.join(f'{luck[n]:.2f}' for n in names)} |{dashes}",
    ]
    mean = fidelity.groupby(["method", "axis", "objective"])["correlation"].mean()
    for reading in READINGS:
        values = [mean[reading, axis, name] for axis in ("pooled", "worthless_share") for name in names]
        cells = " | ".join(f"{value:.2f}".replace("-", "−") for value in values)
        lines.append(f"| {reading} | {cells} |".replace("_", "\\_"))
    lines += ["", *(_compared(fidelity[fidelity["axis"] == f"over_{rival}"], rival) for rival in RIVALS)]
    return "\n".join(lines) + "\n"


def _compared(ratio: pd.DataFrame, rival: str) -> str:
    """How many times a rival's correlation `COMPARED` reaches, over stages and objectives, against what is `ASKED`."""
    low, high, n = ratio["correlation"].min(), ratio["correlation"].max(), len(ratio)
    reached, shown = (ratio["correlation"] >= ASKED).sum(), (ratio["ci_low"] >= ASKED).sum()
    said = (
        f"- {COMPARED} over {rival}: {low:.2f} to {high:.2f} times its correlation; at least the {ASKED:g} asked for in "
        f"{reached} of {n} stages and objectives, the whole interval above {ASKED:g} in {shown}."
    )
    return said.replace("_", "\\_")


def _cell(value: pd.Series) -> str:
    if not np.isfinite(value["correlation"]):
        return "–"
    return f"{value['correlation']:.2f} [{value['ci_low']:.2f}, {value['ci_high']:.2f}]".replace("-", "−")


def main(argv: list[str] | None = None) -> int:
    """Parse, measure, render; exit code 2 with one line where the input cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m reproduce.credit_fidelity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--medium", choices=tuple(STUDIES), default="image", help="which task (default: image)")
    parser.add_argument("--render", action="store_true", help="only rebuild tables and figures from published cells")
    parser.add_argument("--jobs", type=int, default=0, help="tasks side by side (default: one a core; one with a GPU)")
    args = parser.parse_args(argv)
    return run_command("credit_fidelity", lambda: make(args.medium, args.jobs, args.render))


def make(medium: str, jobs: int, render_alone: bool = False) -> None:
    """Measure what is missing, unless only a render is asked for; then tables and figures."""
    if not render_alone:
        from reproduce.runner import default_jobs, run_tasks
        from reproduce.truth import tasks

        for independent in tasks(STUDIES[medium]):
            run_tasks(independent, jobs or default_jobs())
        measure(STUDIES[medium])
    folder = render(medium)
    print((folder / "fidelity.md").read_text())
    print(f"written: {folder}")


if __name__ == "__main__":
    sys.exit(main())
