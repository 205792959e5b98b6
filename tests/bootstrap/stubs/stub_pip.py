"""Stands in for pip in tests of the bootstrap: "installs" each ``name==version`` as a module.

``STUB_PIP`` says how it behaves: ``offline`` fails as pip does without a registry, ``wait`` reports
itself through the pipe ``STUB_PIP_STARTED`` and waits until ``STUB_PIP_GO`` is written, ``half``
leaves the last module out unless told to reinstall.  Each call adds a line to ``STUB_PIP_CALLS``.
"""

import os
import sys
from pathlib import Path

OFFLINE = """\
WARNING: Retrying (Retry(total=1, connect=None)) after connection broken by 'NewConnectionError'
ERROR: Could not find a version that satisfies the requirement click==1.0 (from versions: none)
ERROR: No matching distribution found for click==1.0
"""
#: what a tool does when it is run: it tells how, and exits as told
TOOL_MAIN = """
import os, sys
name = os.path.basename(os.path.dirname(__file__))
print(name, "in", os.getcwd(), "with", sys.argv[1:], flush=True)
sys.exit(int(os.environ.get("EXIT_" + name.upper(), "0")))
"""


def main(arguments: list[str]) -> int:
    """Do what ``pip install ... -r LOCK`` does, as far as the bootstrap can see."""
    behaviour = os.environ.get("STUB_PIP", "")
    with open(os.environ["STUB_PIP_CALLS"], "a", encoding="utf-8") as calls:
        calls.write(" ".join(arguments) + "\n")
    assert "--require-hashes" in arguments
    if behaviour == "offline":
        print(OFFLINE)
        return 1
    lines = Path(arguments[arguments.index("-r") + 1]).read_text(encoding="utf-8").splitlines()
    names = [line.split("==")[0] for line in lines if "==" in line]
    site_packages = Path(__file__).resolve().parent.parent
    if behaviour == "wait":
        (site_packages / "half_installed.py").touch()
        Path(os.environ["STUB_PIP_STARTED"]).write_text(str(os.getpid()), encoding="utf-8")
        Path(os.environ["STUB_PIP_GO"]).read_text(encoding="utf-8")
    if behaviour == "half" and "--force-reinstall" not in arguments:
        names.pop()
    for name in names:
        package = site_packages / name
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(f"lock_lines = {len(lines)}\n", encoding="utf-8")
        (package / "__main__.py").write_text(TOOL_MAIN, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
