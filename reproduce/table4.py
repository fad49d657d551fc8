"""Table 4 (image and video): what each half of OTCA does. Neither, step credit only, objective credit only, both.

    python -m reproduce.table4 --tier quick            train what Tables 1 and 2 have not trained, write runs/table4/quick/
    python -m reproduce.table4 --tier quick --render   rebuild results/table4/quick/ from the published rows alone

"Neither" is static_multi_reward, the baseline of every difference. The rows are those of Tables 1 and 2.
"""

from __future__ import annotations

import sys

from otca.tasks.scenes import SKILLS
from reproduce.table import Table
from reproduce.table2 import TABLE as VIDEO

TABLE = Table(
    name="table4",
    title="Table 4: the parts of OTCA",
    media=("image", "video"),
    methods=("base", "static_multi_reward", "otca_tcd", "otca_moca", "otca"),
    primary="accuracy",
    metrics=("alignment", "quality", "aesthetic", "clip_score", *VIDEO.metrics, *(f"accuracy/{skill}" for skill in SKILLS)),
    figures=False,
    notes=(
        "static_multi_reward is neither half, otca_tcd step credit only, otca_moca objective credit only, otca both.",
        "The paper's Table 4 is the image ablation; the video section is ours.",
        "Embedded task: the numbers are this repository's own, not the paper's.",
    ),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
