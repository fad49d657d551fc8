"""The table of families in otca/models/README.md: `python -m reproduce.family_table`; ``--plan`` plans first."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from otca.config import PolicyConfig, TrainConfig
from otca.models.base import PIPELINES, adapter_of
from otca.shapes import PUBLISHED

ROOT = Path(__file__).parents[1]
README = ROOT / "otca" / "models" / "README.md"
RESULTS = ROOT / "results" / "precision"
PLANNED, PARITY = RESULTS / "plans.csv", RESULTS / "families.csv"
MARKS = "<!-- families -->\n", "<!-- /families -->\n"
FRAMES = 49
"""Frames of a video in the plan."""


def measure(path: str) -> list[object]:
    """Parameters, trained parameters and bytes of a LoRA of rank 32 at 512 px, bf16, one sample at a time."""
    from otca.methods import METHODS
    from otca.plan import plan

    family = PIPELINES[PUBLISHED[path]["pipeline"]]
    policy = {"path": path, "tuning": "lora", "precision": "bf16", "gradient_checkpointing": True, "prompt_cache": "cache"}
    size = {"height": 512, "width": 512, "frames": FRAMES * adapter_of(family).is_video}
    made = plan(TrainConfig(policy=PolicyConfig(**policy | size), rewards=["alignment"], micro_batch=1), METHODS["otca"])
    return [path, sum(n for name, n in made.parameters.items() if name.startswith("transformer")), made.trained, made.peak]


def rows() -> str:
    """One row a published checkpoint, from the files in results/precision/."""
    parity: dict[str, float] = {}
    with open(PLANNED, newline="") as plans, open(PARITY, newline="") as differences:
        planned = {row["path"]: row for row in csv.DictReader(plans)}
        for row in csv.DictReader(differences):
            parity[row["pipeline"]] = max(parity.get(row["pipeline"], 0.0), float(row["max_abs_difference"]))
    out = [
        "| family | checkpoint | pipeline | parameters | trained | guidance | parity | plan |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path, parts in PUBLISHED.items():
        family, made = PIPELINES[parts["pipeline"]], planned.get(path)
        sizes = [f"{int(made['parameters']) / 1e9:.1f} B", f"LoRA, {int(made['trained']) / 1e6:.0f} M"] if made else ["", "LoRA"]
        last = [adapter_of(family).guidance_kind, f"{parity[parts['pipeline']]:.0e}"]
        cells = [family, f"`{path}`", parts["pipeline"], *sizes, *last, f"{int(made['bytes']) / 1e9:.0f} GB" if made else ""]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def main() -> None:
    """Plan what has no row yet, if asked to, and write the table between its two marks."""
    if "--plan" in sys.argv:
        known = PLANNED.read_text()
        for path in PUBLISHED:
            if f"{path}," not in known:
                with open(PLANNED, "a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerow(measure(path))
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    README.write_text(before + MARKS[0] + rows() + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")


if __name__ == "__main__":
    main()
