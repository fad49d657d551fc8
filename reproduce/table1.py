"""Table 1 (image): base, uniform GRPO, static multi-reward GRPO, TCD only, MOCA only, OTCA.

    python -m reproduce.table1 --tier quick            train what is missing into runs/, evaluate, write runs/table1/quick/
    python -m reproduce.table1 --tier quick --render   rebuild results/table1/quick/ from the published rows alone

Arms share prompts, initial noise, seeds, reward calls and network evaluations. Deviations from the paper: README.
"""

from __future__ import annotations

import sys

from reproduce.table import BEYOND, COMPARISON, Table

TABLE = Table(
    name="table1",
    title="Table 1: image",
    media=("image",),
    methods=COMPARISON,
    beyond=BEYOND,
    primary="accuracy",
    versus=("uniform_grpo", "otca", "process_credit", "process_credit@equal"),
    notes=(
        "Trained objectives: alignment, quality, aesthetic. All other columns are held out: no reward sees the judge, the "
        "CLIP model or the test prompts.",
        "Embedded task: the numbers are this repository's own, not the paper's.",
    ),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
