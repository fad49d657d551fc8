"""Table 2 (video): base, uniform GRPO, static multi-reward GRPO, TCD only, MOCA only, OTCA on VQ, MQ, TA and accuracy.

    python -m reproduce.table2 --tier quick            train what is missing, write runs/results/table2/quick/
    python -m reproduce.table2 --tier quick --render   rebuild results/table2/quick/ from the published rows alone

Methods share prompts, initial noise, seeds, reward calls and network evaluations. Table 3 has the same runs' motion metrics.
"""

from __future__ import annotations

import sys

from eval.columns import METRICS
from reproduce.table import BEYOND, COMPARISON, EMBEDDED, QUICK, Table

TABLE = Table(
    name="table2",
    title="Table 2: video",
    modalities=("video",),
    methods=COMPARISON,
    quick=QUICK,
    beyond=BEYOND,
    metrics=(
        *("accuracy", "vq", "mq", "ta", "direction_accuracy", "speed_accuracy", "kernel_distance", "diversity"),
        *(name for name in METRICS if name.startswith("accuracy/")),
    ),
    notes=("Held out: no reward sees the judge, the feature model or the test prompts.", EMBEDDED),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
