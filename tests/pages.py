"""A small folder of published results for tests of the page: two real tables with their runs, and a prompt that is an attack."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from eval.sources import read_sources

RESULTS = Path(__file__).parent.parent / "results"
TABLES = ("table1/quick", "table1/cpu", "table2/quick")
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 ${x}"


def some_results(folder: Path) -> Path:
    """Copies of `TABLES` and of their runs, the first image prompt of all of them at the cpu tier replaced by `ATTACK`."""
    for name in TABLES:
        shutil.copytree(RESULTS / name, folder / name)
        for run in read_sources(RESULTS / name)[1]:
            shutil.copytree(RESULTS / run, folder / run, dirs_exist_ok=True)
    shutil.copyfile(RESULTS / "README.md", folder / "README.md")
    for listing in folder.glob("image/cpu/*/seed*/media/prompts.jsonl"):
        rows = [json.loads(line) for line in listing.read_text().splitlines()]
        rows[0]["prompt"] = ATTACK
        listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
