"""Table 2 (video): the methods of Table 1 on VQ, MQ, TA and accuracy; Table 3 has the same runs' motion metrics.

    python -m reproduce.table2 --tier quick            train what is missing, write runs/results/table2/quick/
    python -m reproduce.table2 --tier quick --render   rebuild results/table2/quick/ from the published rows alone
"""

import sys

from eval.columns import METRICS
from reproduce.table import BEYOND, COMPARISON, EMBEDDED, QUICK, Table

COLUMNS = ("accuracy", "vq", "mq", "ta", "direction_accuracy", "speed_accuracy", "kernel_distance", "diversity")
SKILLS = tuple(name for name in METRICS if name.startswith("accuracy/"))
NOTE = "Held out: no reward sees the judge, the feature model or the test prompts."
TABLE = Table(
    *("table2", "Table 2: video", ("video",), COMPARISON),
    metrics=COLUMNS + SKILLS,
    quick=QUICK,
    beyond=BEYOND,
    notes=(NOTE, EMBEDDED),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
