"""Table 1 (image): base, uniform GRPO, static multi-reward GRPO, TCD only, MOCA only, OTCA (quick: without the two halves).

    python -m reproduce.table1 --tier quick            train what is missing, write runs/results/table1/quick/
    python -m reproduce.table1 --tier quick --render   rebuild results/table1/quick/ from the published rows alone
"""

import sys

from reproduce.table import main

if __name__ == "__main__":
    sys.exit(main("table1", __doc__))
