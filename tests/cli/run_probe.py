"""Runs ``lb`` in a process of its own with extra commands, or with a fake broker.

``run_probe.py probe WAY`` runs a command of ``probe_commands``; ``run_probe.py SCENARIO -- ARGS``
runs ``lb ARGS`` against a fake broker.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from lbcore.cli.main import COMMANDS, Entry, main
from tests.cli.fake_broker import FakeBroker, FakeReply, good_reply


def answer_slowly(index: int, task: str, arguments: Mapping[str, Any] | None) -> FakeReply:
    """Say when the first request is there, then answer one each 5 ms."""
    if index == 20:
        print("streaming", file=sys.stderr, flush=True)
    time.sleep(0.005)
    return good_reply(index, task, arguments)


SCENARIOS = {
    "good": FakeBroker(),
    "slow": FakeBroker(answer=answer_slowly),
    "absent": FakeBroker(absent=True),
}

if __name__ == "__main__":
    if "--" in sys.argv:
        SCENARIOS[sys.argv[1]].install()
        del sys.argv[1 : sys.argv.index("--") + 1]
    else:
        COMMANDS["probe"] = Entry("tests.cli.probe_commands:probe", "Fail in some way.")
    sys.argv[0] = "lb"
    # a suite that a script runs in the background hands down an ignored SIGINT
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
