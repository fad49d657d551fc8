"""The table of families in otca/models/README.md: `python -m reproduce.family_table`; ``--plan`` plans first."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pandas as pd

from otca.config import PolicyConfig, TrainConfig
from otca.methods import METHODS
from otca.models.base import PIPELINES, adapter_of
from otca.plan import plan
from otca.shapes import PUBLISHED

ROOT = Path(__file__).parents[1]
README = ROOT / "otca" / "models" / "README.md"
PLANNED, PARITY = (ROOT / "results" / "precision" / f"{name}.csv" for name in ("plans", "families"))
MARKS = "<!-- families -->\n", "<!-- /families -->\n"
FRAMES = 49
"""Frames of a video in the plan."""


def measure(path: str) -> list[object]:
    """Parameters, trained parameters and bytes of a LoRA of rank 32 at 512 px, bf16, one sample at a time."""
    size = {"height": 512, "width": 512, "frames": FRAMES * adapter_of(PIPELINES[PUBLISHED[path]["pipeline"]]).is_video}
    policy = PolicyConfig(path=path, tuning="lora", precision="bf16", gradient_checkpointing=True, prompt_cache="cache", **size)
    made = plan(TrainConfig(policy=policy, rewards=["alignment"], micro_batch=1), METHODS["otca"])
    return [path, sum(n for name, n in made.parameters.items() if name.startswith("transformer")), made.trained, made.peak]


def rows() -> str:
    """One row a published checkpoint, from the files in results/precision/."""
    parity = pd.read_csv(PARITY).groupby("pipeline")["max_abs_difference"].max()
    planned = pd.read_csv(PLANNED).set_index("path")
    table = [("family", "checkpoint", "pipeline", "parameters", "trained", "guidance", "parity", "plan"), ("---",) * 8]
    for path, parts in PUBLISHED.items():
        pipeline = parts["pipeline"]
        family, counted = PIPELINES[pipeline], ("", "LoRA", "")
        if path in planned.index:
            made = planned.loc[path]
            trained = f"LoRA, {made['trained'] / 1e6:.0f} M"
            counted = f"{made['parameters'] / 1e9:.1f} B", trained, f"{made['bytes'] / 1e9:.0f} GB"
        kind, difference = adapter_of(family).guidance_kind, f"{parity[pipeline]:.0e}"
        table.append((family, f"`{path}`", pipeline, *counted[:2], kind, difference, counted[2]))
    return "".join(f"| {' | '.join(cells)} |\n" if cells[0] != "---" else f"|{'|'.join(cells)}|\n" for cells in table)


def main() -> None:
    if "--plan" in sys.argv:
        for path in [path for path in PUBLISHED if path not in set(pd.read_csv(PLANNED)["path"])]:
            with open(PLANNED, "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(measure(path))
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    README.write_text(before + MARKS[0] + rows() + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


if __name__ == "__main__":
    main()
