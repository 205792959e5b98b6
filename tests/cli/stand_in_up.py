"""Stands in for ``lb up`` in the tests of ``demo``: holds the lock, says RUNNING, runs nothing.

``stand_in_up.py CONFIG WAY``: ``good`` stops on SIGTERM, ``stubborn`` ignores it, ``broken`` ends
at once with a message.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from lbcore.shell.config_file import load
from lbcore.shell.state import ProcessState, StateFolder, SystemState


def main() -> None:
    """Hold a topology that is RUNNING by its state file."""
    config, way = sys.argv[1:]
    if way == "broken":
        sys.exit("port 8000 is in use by haproxy")
    if way == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    broker = ProcessState(
        name="broker", pid=None, address="127.0.0.1:1", state="RUNNING", restarts=0, log=""
    )
    folder = StateFolder(load(config, (), {}))
    folder.write(
        SystemState(
            pid=os.getpid(),
            started_at=time.time(),
            create_time=0.0,
            name="demo",
            config=config,
            state="RUNNING",
            broker=broker,
            workers=[],
        )
    )
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
