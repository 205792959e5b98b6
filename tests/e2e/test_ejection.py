"""A worker whose own fault it is that requests fail gets none, until one that it is given works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lbcore import Client, TaskError
from tests.e2e.running import PATIENCE_S, RunningSystem, wait_until

TASKS = """\
import os
from pathlib import Path
from lbcore import task

@task(cost=0.002, idempotent=True)
def job():
    if os.environ.get("SPOILT") and Path(os.environ["SPOILT"]).exists():
        raise OSError("no space left on device")
    return os.getpid()
"""


def figures(client: Client, name: str) -> dict[str, Any]:
    (worker,) = [each for each in client.status()["workers"] if each["name"] == name]
    return dict(worker)


def test_a_spoilt_worker_is_left_alone_and_comes_back(tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    (tmp_path / "jobs.py").write_text(TASKS)
    yaml = f"""\
broker: {{port: 0}}
tasks: [jobs.py]
workers:
  - {{name: good}}
  - {{name: better}}
  - {{name: bad, env: {{SPOILT: "{spoilt}"}}}}
"""
    system = RunningSystem(tmp_path, yaml)
    try:
        system.up()
        with system.client() as client:

            def together() -> list[Any]:
                return [client.submit("job").exception(PATIENCE_S) for _ in range(6)]

            for _ in range(10):
                assert together() == [None] * 6
            spoilt.touch()
            errors: list[Any] = []
            while figures(client, "bad")["ejected_s"] is None:
                assert len(errors) < 1000
                errors += together()
            assert any(isinstance(error, TaskError) for error in errors)
            failed = figures(client, "bad")["failed"]
            assert failed < 12
            assert "EJECTED" in system.cli("status", code=1).stdout
            assert together() == [None] * 6
            assert figures(client, "bad")["failed"] == failed
            assert any("bad failed" in line for line in system.log("broker").splitlines())
            spoilt.unlink()

            def is_back() -> bool:
                assert together() == [None] * 6
                return figures(client, "bad")["ejected_s"] is None

            wait_until(is_back, "the trial")
    finally:
        system.down()
