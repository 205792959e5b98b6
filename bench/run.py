"""Entry script of the benchmark: ``python lb.py bench`` runs ``python bench/run.py``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    """Put the project's root first on the import path, in place of this folder, and run."""
    folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != folder]
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
    if sys.argv[1:2] == ["chaos"]:
        from bench.chaos.command import run_command as run_chaos

        return run_chaos(sys.argv[2:])
    if sys.argv[1:2] == ["hog"]:
        from bench.hog import run_command as run_hog

        return run_hog(sys.argv[2:])
    from bench.command import run_command

    return run_command()


if __name__ == "__main__":
    sys.exit(main())
