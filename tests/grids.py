"""A grid of tiny runs, made by a command of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from otca.files import LOCK
from tests.killed import wait_for
from tests.processes import ROOT, ran

GRID = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
import pytest
from otca.signals import run_command
from reproduce import grid
from tests.test_survival_tables import TABLE, tiny_tier
patched = pytest.MonkeyPatch()
tiny_tier(patched, {pipeline!r})
grid.WATCH_SECONDS = 1.0
class Job(grid.Job):
    def __call__(self):
        tiny_tier(patched, {pipeline!r})  # a job is another process, to which the tier is new
        return super().__call__()
grid.Job = Job
sys.exit(run_command("grid", lambda: grid.run_grid(TABLE.arms("tiny")[:{runs}], Path("runs"), *{options!r})))
"""


def grid_of(folder: Path, pipeline: str, runs: int, *options: object, **environment: str) -> subprocess.CompletedProcess:
    """Make the first ``runs`` of `TABLE` below a folder; ``options``: jobs, partition, GPUs. Called again, it goes on."""
    script = folder / "grid.py"
    script.write_text(GRID.format(root=str(ROOT), pipeline=pipeline, runs=runs, options=options))
    return ran([sys.executable, script], cwd=folder, PYTHONPATH=str(ROOT), **environment)


def worker_of(folder: Path) -> int:
    """Wait until a job has a run of the grid in work; its pid."""
    found: list[str] = []

    def in_work() -> bool:
        found[:] = [text for path in folder.glob(f"runs/image/tiny/*/seed0/{LOCK}") if (text := path.read_text())]
        return bool(found)

    wait_for(in_work, 200)
    return int(found[0].split()[1])  # pid N on HOST


def finished(folder: Path) -> set[str]:
    """Methods whose run is finished."""
    return {path.parent.parent.name for path in folder.glob("runs/image/tiny/*/seed0/manifest.json")}
