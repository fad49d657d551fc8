"""The table of families in otca/models/README.md: ``python -m otca.models.table`` writes it between its two marks."""

from __future__ import annotations

from pathlib import Path

from otca.architectures import PUBLISHED
from otca.config import PolicyConfig, TrainConfig
from otca.methods import METHODS
from otca.models.base import FAMILIES, adapter_of
from otca.models.flux2 import Flux2Policy
from otca.plan import plan

README = Path(__file__).with_name("README.md")
MARKS = "<!-- families -->\n", "<!-- /families -->\n"
FRAMES = 49
"""Frames of a video in the plan."""


def rows() -> str:
    """One row a published checkpoint, planned for a LoRA of rank 32 at 512 px in bf16, one sample at a time."""
    families = {pipeline: family for family, (pipeline, _) in FAMILIES.items()}
    out = ["| family | checkpoint | pipeline | parameters | LoRA | guidance | plan, GB |", "|---|---|---|---|---|---|---|"]
    for path, parts in PUBLISHED.items():
        family = families[parts["pipeline"]]
        adapter = adapter_of(family)
        policy = {"path": path, "tuning": "lora", "precision": "bf16", "gradient_checkpointing": True, "prompt_cache": "cache"}
        size = {
            "height": 512,
            "width": 512,
            "frames": FRAMES if adapter.is_video else 0,
            "true_guidance": 1.0 if adapter is Flux2Policy else 4.0,
        }
        made = plan(TrainConfig(policy=PolicyConfig(**policy | size), rewards=["alignment"], micro_batch=1), METHODS["otca"])
        networks = sum(count for name, count in made.parameters.items() if name.startswith("transformer"))
        cells = (
            family,
            f"`{path}`",
            parts["pipeline"],
            f"{networks / 1e9:.1f} B",
            f"{made.trained / 1e6:.0f} M",
            adapter.guidance_kind,
        )
        out.append(f"| {' | '.join(cells)} | {made.peak / 1e9:.0f} |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    before, rest = README.read_text(encoding="utf-8").split(MARKS[0])
    README.write_text(before + MARKS[0] + rows() + MARKS[1] + rest.split(MARKS[1])[1], encoding="utf-8")
