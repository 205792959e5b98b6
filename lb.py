#!/usr/bin/env python3
"""lb from a clone: ``python lb.py up``.  ``lbcore.bootstrap`` says what it does on a fresh machine.

This file must parse on every Python, so that an old one gets one clear line and not a SyntaxError.
"""

import sys

if sys.version_info < (3, 11):
    sys.stderr.write(
        "lb needs Python 3.11 or newer; this is %d.%d.%d (%s)\n"
        % (sys.version_info[0], sys.version_info[1], sys.version_info[2], sys.executable)
    )
    sys.exit(3)

from lbcore.bootstrap import main

if __name__ == "__main__":
    sys.exit(main())
