"""``python -m lbcore``: the same door as ``lb.py``, for an installed lb."""

import sys

from lbcore.bootstrap import main

if __name__ == "__main__":
    sys.exit(main())
