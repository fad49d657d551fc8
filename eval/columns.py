"""Every metric that a table may hold (`columns.yaml`): how it is named, read and printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from otca.tasks.scenes import SKILLS
from otca.tasks.video_scenes import SKILLS as VIDEO_SKILLS


@dataclass(frozen=True)
class Metric:
    """How a metric is read and printed."""

    label: str
    higher_is_better: bool | None = True  # None: neither direction is
    held_out: bool = True  # never trained on
    decimals: int = 3  # in md and tex


METRICS: dict[str, Metric] = {}
for _name, _facts in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items():
    METRICS[_name] = Metric(**_facts)
    if _name == "accuracy":
        METRICS |= {f"accuracy/{s}": Metric(s.replace("_", " ").capitalize()) for s in dict.fromkeys(SKILLS + VIDEO_SKILLS)}
