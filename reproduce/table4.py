"""Table 4 (image and video): what each half of OTCA does. Neither, step credit only, objective credit only, both.

    python -m reproduce.table4 --tier quick            train what Tables 1 and 2 have not, write runs/results/table4/quick/
    python -m reproduce.table4 --tier quick --render   rebuild results/table4/quick/ from the published rows alone
"""

import sys

from reproduce.table import EMBEDDED, Table
from reproduce.table2 import TABLE as VIDEO

PARTS = "static_multi_reward is neither half, otca_tcd step credit only, otca_moca objective credit only, otca both."
TABLE = Table(
    *("table4", "Table 4: the parts of OTCA", ("image", "video")),
    methods=("base", "static_multi_reward", "otca_tcd", "otca_moca", "otca"),
    metrics=("accuracy", "alignment", "quality", "aesthetic", "clip_score", *VIDEO.metrics[1:]),
    figures=False,
    notes=(PARTS, "The paper's Table 4 is the image ablation; the video section is ours.", EMBEDDED),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
