"""``python -m otca COMMAND``."""

import sys

from otca.cli import main

if __name__ == "__main__":
    sys.exit(main())
