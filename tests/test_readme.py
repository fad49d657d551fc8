"""What the README tells users to type works as written."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

import baselines
from otca.config import TrainConfig
from otca.trainer import Trainer
from tests.toys import toy_settings

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture
def worst_first(tmp_path, monkeypatch):
    """The README's example saved in a folder that `baselines` also looks in."""
    block = README.read_text().split("<!-- add-a-method -->")[1].split("<!-- /add-a-method -->")[0]
    (tmp_path / "worst_first.py").write_text(re.fullmatch(r"\s*```python\n(.*)```\s*", block, re.DOTALL)[1])
    monkeypatch.setattr(baselines, "__path__", [*baselines.__path__, str(tmp_path)])
    yield baselines.find_method("worst_first")
    sys.modules.pop("baselines.worst_first", None)


def test_the_example_of_a_method_trains(worst_first, untrained_pipeline, tmp_path):
    settings = toy_settings(worst_first.name, untrained_pipeline, **{"sampler.steps": 4})
    Trainer(TrainConfig.from_dotted(settings), worst_first, tmp_path / "run").run()
    row = pd.read_csv(tmp_path / "run" / "train.csv").iloc[0]
    assert row["update_norm"] > 0 and row["first_ratio_deviation"] == 0
    weights = [row[f"weight_step_{t}"] for t in range(4)]
    assert weights[0] > weights[1] > weights[2] > weights[3] == 0 and sum(weights) == pytest.approx(3, rel=1e-4)
    assert row["weight_red"] + row["weight_blue"] == pytest.approx(1, rel=1e-4)


def test_flags_of_the_deviation_ledger_are_settings():
    """Each setting that the ledger names is one that the command line takes; each row says what the paper says and we do."""
    table = README.read_text().split("## Deviations from the paper")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 25 and all(len(row) == 4 and all(cell.strip() for cell in row) for row in rows)
    settings = dataclasses.asdict(TrainConfig())
    known = {*settings, *(f"{part}.{name}" for part, own in settings.items() if isinstance(own, dict) for name in own)}
    named = [name for row in rows for name in re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)?)`", row[3])]
    assert len(named) > 25 and set(named) - known <= {"otca", "otca_moca", "otca_tcd", "moca_step"}  # which are methods
