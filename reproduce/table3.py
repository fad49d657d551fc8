"""Table 3 (video): the runs of Table 2 on motion metrics that no reward sees, dynamic degree beside smoothness.

    python -m reproduce.table3 --tier quick            train what Table 2 has not trained, write runs/results/table3/quick/
    python -m reproduce.table3 --tier quick --render   rebuild results/table3/quick/ from the published rows alone
"""

import sys

from reproduce.table import BEYOND, COMPARISON, EMBEDDED, QUICK, Table

FROZEN = "A frozen video has the best smoothness, flicker score, warping error and consistency: read them beside dynamic degree."
NAMES = (
    "Optical flow: OpenCV's DIS, medium preset; features: the embedded open_clip model. None is VBench's backbone, so only "
    "temporal flickering, which needs none, bears VBench's name (VBench computes it on static scenes)."
)
FLOW = ("dynamic_degree_dis", "motion_smoothness_dis", "top_flow_dis", "temporal_flickering", "warping_error_dis")
TABLE = Table(
    *("table3", "Table 3: motion", ("video",), COMPARISON),
    primary="dynamic_degree_dis",
    metrics=(*FLOW, "frame_consistency_embedded"),
    quick=QUICK,
    beyond=BEYOND,
    figures=False,
    notes=(FROZEN, NAMES, EMBEDDED),
)

if __name__ == "__main__":
    sys.exit(TABLE.main(__doc__))
