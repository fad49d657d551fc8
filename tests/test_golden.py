"""A refactor moves no number: three iterations of four runs, compared with rows frozen in tests/fixtures/golden/.

After a change that is meant to move numbers (a new task, a new protocol): ``python -m tests.test_golden`` freezes them anew,
in a commit that does nothing else.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import pytest

from otca.__main__ import main

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
SMALL = (
    "--iterations 3 --prompts_per_iteration 2 --group_size 4 --micro_batch 4 --sampler.steps 4 "
    "--optimizer.updates_per_iteration 1"
)
RUNS = {
    "image-static": "--preset image/quick --method static_multi_reward",
    "image-otca": "--preset image/quick --method otca",
    "video-otca": "--preset video/quick --method otca",
    "image-process": "--preset image/quick --method process_credit",
}


def train_rows(name: str, folder: Path) -> list[dict[str, str]]:
    """The rows of train.csv of one run."""
    assert main(["train", *RUNS[name].split(), *SMALL.split(), "--out", str(folder / name)]) == 0
    with open(folder / name / "train.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", RUNS)
def test_training_rows_are_unchanged(name, tmp_path):
    with open(GOLDEN / f"{name}.csv", newline="", encoding="utf-8") as file:
        golden = list(csv.DictReader(file))
    rows = train_rows(name, tmp_path)
    assert len(rows) == len(golden)
    for row, frozen in zip(rows, golden):
        assert row.keys() >= frozen.keys()
        for column, value in frozen.items():  # equal bit for bit on one processor; other processors round differently
            assert float(row[column]) == pytest.approx(float(value), rel=1e-3, abs=1e-5), column


if __name__ == "__main__":
    for run in RUNS:
        with tempfile.TemporaryDirectory() as temporary:
            rows = train_rows(run, Path(temporary))
        with open(GOLDEN / f"{run}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
