"""Stands in for the standard ``venv`` in tests of the bootstrap: a real environment, a stub pip.

Put on PYTHONPATH, it is what ``python -m venv`` runs.  ``STUB_VENV`` makes it fail as a Debian
without python3-venv does.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

NO_ENSUREPIP = """\
The virtual environment was not created successfully because ensurepip is not
available.  On Debian/Ubuntu systems, you need to install the python3-venv
package using the following command.

    apt install python3-venv

Failing command: /usr/bin/python3
"""


def main() -> int:
    """Make the environment that the last argument names."""
    if os.environ.get("STUB_VENV") == "no ensurepip":
        print(NO_ENSUREPIP)
        return 1
    folder = Path(sys.argv[-1])
    # -I: the real venv, not this one again
    subprocess.check_call([sys.executable, "-I", "-m", "venv", "--without-pip", str(folder)])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    pip = folder / "lib" / version / "site-packages" / "pip"
    pip.mkdir()
    (pip / "__init__.py").touch()
    shutil.copy(Path(__file__).with_name("stub_pip.py"), pip / "__main__.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
