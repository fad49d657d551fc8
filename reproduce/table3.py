"""Table 3 (video): the runs of Table 2 on motion metrics that no reward sees, dynamic degree beside smoothness.

    python -m reproduce.table3 --tier quick            train what Table 2 has not trained, write runs/results/table3/quick/
    python -m reproduce.table3 --tier quick --render   rebuild results/table3/quick/ from the published rows alone
"""

import sys

from reproduce.table import main

if __name__ == "__main__":
    sys.exit(main("table3", __doc__))
