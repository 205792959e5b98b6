"""One seed, one history: in every process, whatever its hashes and addresses are."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def digest(seed: int, hash_seed: str) -> str:
    """Of everything that one run tells, step by step."""
    command = [sys.executable, "lb.py", "simulate", "--faults", "--seed", str(seed)]
    done = subprocess.run(
        [*command, "--each", "2000", "--trace"],
        cwd=REPOSITORY,
        env={**os.environ, "LB_NO_VENV": "1", "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=False,
    )
    assert done.stdout.count(b"\n") > 100, done.stderr.decode()
    # the last lines hold how long it really took
    lines = [line for line in done.stdout.splitlines() if b"virtual seconds in" not in line]
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_seed_is_the_same_run(seed: int) -> None:
    assert digest(seed, "1") == digest(seed, "2")


def test_another_seed_is_another_run() -> None:
    assert digest(1, "0") != digest(2, "0")
