"""What credit fidelity came to, as text: the tables of a modality, and means over its stages (`reproduce.credit_fidelity`)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from eval.fidelity import AXES
from reproduce.truth import STAGES

WITHIN = ("otca_tcd", "otca_tcd@x0_hat", "process_credit")
"""The readings of which it is told how they run within a trajectory."""

COMPARED, RIVALS, ASKED = "process_credit", ("uniform_grpo", "static_multi_reward", "otca_tcd"), 2.0
"""Whose correlation with the truth is to be so many times that of each rival."""


def report(fidelity: pd.DataFrame, stages: pd.DataFrame) -> str:
    """Tables of a modality: how good the truth is, then correlations on each axis, averaged over the stages' estimates."""
    lines = ["# Credit fidelity", "", "| Stage | Objective | Reliability (SE) | Luck of the initial noise | Worthless cells |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for row in stages.itertuples():
        quality = f"{row.reliability:.2f} ({row.reliability_se:.2f}) | {row.luck:.2f} | {row.worthless_cells:.2f}"
        lines.append(f"| {row.stage} | {row.objective} | {quality} |")
    names, readings = (list(dict.fromkeys(column)) for column in (stages["objective"], fidelity["method"]))
    for axis in (*AXES, "worthless_share"):
        title = "Share of credit on worthless cells" if axis == "worthless_share" else f"Correlation with the truth: {axis}"
        heads = [f"{stage}, {name}" for stage in STAGES for name in names]
        lines += ["", f"## {title}", "", f"| Method | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
        part = fidelity[fidelity["axis"] == axis].set_index(["method", "stage", "objective"])
        for reading in readings:
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
    """In short: what the truth is made of, then pooled correlation and waste of each reading, means of the stages."""
    names, readings = (list(dict.fromkeys(column)) for column in (stages["objective"], fidelity["method"]))
    first = stages.iloc[0]
    low, high = stages["reliability"].min(), stages["reliability"].max()
    worthless, luck = (stages.groupby("objective")[column].mean() for column in ("worthless_cells", "luck"))
    dashes = " – |" * len(names)
    lines = [
        f"{first.trajectories} trajectories of {first.groups} prompts at each of {len(STAGES)} stages of training, every state "
        f"continued {first.continuations} times; reliability of the truth {low:.2f} to {high:.2f}. Means over the stages.",
        "",
        f"| Method | {' | '.join(names)} | {' | '.join(f'{name}: on worthless cells' for name in names)} |",
        "| --- |" + " ---: |" * (2 * len(names)),
        f"| (share of cells that are worthless) |{dashes} {' | '.join(f'{worthless[n]:.2f}' for n in names)} |",
        f"| (share of the reward that the initial noise decides) | {' | '.join(f'{luck[n]:.2f}' for n in names)} |{dashes}",
    ]
    mean = fidelity.groupby(["method", "axis", "objective"])["correlation"].mean()
    for reading in readings:
        values = [mean[reading, axis, name] for axis in ("pooled", "worthless_share") for name in names]
        cells = " | ".join(f"{value:.2f}".replace("-", "−") for value in values)
        lines.append(f"| {reading} | {cells} |".replace("_", "\\_"))
    lines += ["", *(_compared(fidelity[fidelity["axis"] == f"over_{rival}"], rival) for rival in RIVALS)]
    within = fidelity[fidelity["axis"] == "step"]
    lines += [_within(within[within["method"] == reading], reading) for reading in WITHIN]
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


def _within(of_reading: pd.DataFrame, reading: str) -> str:
    """How a reading's credit runs with the truth over the steps of a trajectory, over stages and objectives."""
    low, high, n = of_reading["correlation"].min(), of_reading["correlation"].max(), len(of_reading)
    above, below = (of_reading["ci_low"] > 0).sum(), (of_reading["ci_high"] < 0).sum()
    said = (
        f"- {reading} over the steps of a trajectory: correlation {low:.2f} to {high:.2f}; interval above 0 in {above} of "
        f"{n} stages and objectives, below in {below}."
    )
    return said.replace("_", "\\_").replace("-0", "−0")


def _cell(value: pd.Series) -> str:
    if not np.isfinite(value["correlation"]):
        return "–"
    return f"{value['correlation']:.2f} [{value['ci_low']:.2f}, {value['ci_high']:.2f}]".replace("-", "−")
