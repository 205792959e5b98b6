"""A request whose worker stands still is answered by another one, where the topology wants that."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lbcore.core.hedging import KNOWN
from tests.e2e.running import PATIENCE_S, RunningSystem

YAML = """\
broker: {port: 0}
workers: 2
policy: {name: least_load, hedge: 0.9}
"""


def test_a_worker_that_stands_still_delays_nobody_for_long(tmp_path: Path) -> None:
    system = RunningSystem(tmp_path, YAML)
    try:
        system.up()
        with system.client() as client:
            for _ in range(KNOWN):
                for future in [client.submit("sleep", seconds=0.02) for _ in range(2)]:
                    future.result(PATIENCE_S)
            stopped = system.pid("worker-1")
            os.kill(stopped, signal.SIGSTOP)
            try:
                futures = [client.submit("sleep", seconds=0.02) for _ in range(2)]
                for future in futures:
                    future.result(PATIENCE_S)
            finally:
                os.kill(stopped, signal.SIGCONT)
            # both work on, and no process was replaced for it
            for future in [client.submit("sleep", seconds=0.02) for _ in range(20)]:
                future.result(PATIENCE_S)
            assert system.pid("worker-1") == stopped
    finally:
        system.down()
