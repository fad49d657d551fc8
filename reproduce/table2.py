"""Table 2 (video): the methods of Table 1 on VQ, MQ, TA and accuracy; Table 3 has the same runs' motion metrics.

    python -m reproduce.table2 --tier quick            train what is missing, write runs/results/table2/quick/
    python -m reproduce.table2 --tier quick --render   rebuild results/table2/quick/ from the published rows alone
"""

import sys

from reproduce.table import main

if __name__ == "__main__":
    sys.exit(main("table2", __doc__))
