"""Table 4 (image and video): what each half of OTCA does. Neither, step credit only, objective credit only, both.

    python -m reproduce.table4 --tier quick            train what Tables 1 and 2 have not, write runs/results/table4/quick/
    python -m reproduce.table4 --tier quick --render   rebuild results/table4/quick/ from the published rows alone
"""

import sys

from reproduce.table import main

if __name__ == "__main__":
    sys.exit(main("table4", __doc__))
