"""Table 1 (image): base, uniform GRPO, static multi-reward GRPO, TCD only, MOCA only, OTCA (quick: without the two halves).

    python -m reproduce.table1 --tier quick            train what is missing, write runs/results/table1/quick/
    python -m reproduce.table1 --tier quick --render   rebuild results/table1/quick/ from the published rows alone

Methods share prompts, initial noise, seeds, reward calls and network evaluations. Deviations from the paper: otca/DEVIATIONS.md.
"""

from __future__ import annotations

import sys

from reproduce.table import BEYOND, COMPARISON, EMBEDDED, QUICK, Table

TABLE = Table(
    name="table1",
    title="Table 1: image",
    modalities=("image",),
    methods=COMPARISON,
    quick=QUICK,
    beyond=BEYOND,
    notes=("Held out: no reward sees the judge, the CLIP model or the test prompts.", EMBEDDED),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
