"""Table 3 (video): the runs of Table 2 on motion metrics, dynamic degree beside smoothness.

    python -m reproduce.table3 --tier quick            train what Table 2 has not trained, write runs/results/table3/quick/
    python -m reproduce.table3 --tier quick --render   rebuild results/table3/quick/ from the published rows alone

No reward sees these metrics. Where VBench's backbone is not used, the metric has another name than VBench's.
"""

from __future__ import annotations

import sys

from reproduce.table import BEYOND, COMPARISON, EMBEDDED, QUICK, Table

TABLE = Table(
    name="table3",
    title="Table 3: motion",
    modalities=("video",),
    methods=COMPARISON,
    quick=QUICK,
    beyond=BEYOND,
    primary="dynamic_degree_dis",
    metrics=(
        *("dynamic_degree_dis", "motion_smoothness_dis", "top_flow_dis", "temporal_flickering", "warping_error_dis"),
        "frame_consistency_embedded",
    ),
    figures=False,
    notes=(
        "A frozen video has the best smoothness, flicker score, warping error and consistency: read them beside dynamic degree.",
        "Optical flow: OpenCV's DIS, medium preset; features: the embedded open_clip model. None is VBench's backbone, so only "
        "temporal flickering, which needs none, bears VBench's name (VBench computes it on static scenes).",
        EMBEDDED,
    ),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
