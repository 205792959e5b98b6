"""A whole ``up`` with stand-in children, run as a process of its own by the tests.

``stand_in_system.py CONFIG [-d] [--timing JSON]``.  How each child behaves is read, whenever it
starts, from ``ways.json`` beside the topology: a mapping of process names to names of functions
below.  A child without an entry is ``good``.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from lbcore.cli.main import run
from lbcore.cli.up import start, up
from lbcore.core.children import Timing
from lbcore.core.topology import Topology, WorkerConfig
from lbcore.shell.crew import Targets
from lbcore.shell.shared import SharedMemory, Slot

#: short enough for a test, long enough for a busy machine
TIMING = {
    "backoff_first_s": 0.02,
    "backoff_max_s": 0.1,
    "start_limit_s": 20.0,
    "failed_grace_s": 0.2,
    "term_after_s": 0.1,
    "kill_after_s": 0.4,
}
LOST_REQUEST = 7 << 32 | 42


class Child:
    """What a stand-in has at hand."""

    def __init__(
        self, name: str, folder: Path, listener: socket.socket, leash: socket.socket
    ) -> None:
        self.name = name
        self.folder = folder
        self.listener = listener
        self.leash = leash
        self.running = memoryview(bytearray(8)).cast("Q")

    def say(self, **message: Any) -> None:
        self.leash.sendall(json.dumps(message).encode() + b"\n")

    def obey(self) -> int:
        """Do what the supervisor says until it says stop, or is gone."""
        with open(self.leash.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                message = json.loads(line)
                with (self.folder / f"told-{self.name}").open("a") as told:
                    told.write(json.dumps(message) + "\n")
                if message["event"] == "stop":
                    return 0
                if message["event"] == "drain" and not (self.folder / "no-drain").exists():
                    self.say(event="drained")
        os._exit(1)

    def note(self, what: str, value: object) -> None:
        """Leave a fact for the test, whole or not at all."""
        path = self.folder / what
        path.with_suffix(".new").write_text(json.dumps(value))
        path.with_suffix(".new").rename(path)


def good(child: Child) -> int:
    """Answers every connection with its pid."""

    def serve() -> None:
        while True:
            peer, _ = child.listener.accept()
            peer.sendall(str(os.getpid()).encode())
            peer.close()

    threading.Thread(target=serve, daemon=True).start()
    child.say(event="ready")
    return child.obey()


def crashes(_: Child) -> int:
    """Ends before it is ready."""
    return 7


def crashes_later(child: Child) -> int:
    """Is ready first."""
    child.say(event="ready")
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def fails(child: Child) -> int:
    """Says why it cannot start."""
    child.say(event="failed", error="tasks.py:3: no module named numpi", detail="Traceback", code=2)
    return 2


def mute(_: Child) -> int:
    """Never says anything."""
    while True:
        signal.pause()


def stubborn(child: Child) -> int:
    """Does not stop when asked."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child.say(event="ready")
    return mute(child)


def family(child: Child) -> int:
    """Starts a process in its group and one that escapes it."""
    near = subprocess.Popen(["sleep", "1000"])
    far = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    child.note(f"family-{child.name}", [near.pid, far.pid])
    return good(child)


def last_words(child: Child) -> int:
    """Prints past its logging, and dies with a request in its hands."""
    child.say(event="ready")
    child.running[0] = LOST_REQUEST
    print("a print")
    os.write(2, b"\x1b[31mred\n and no end of line")
    faulthandler.enable()
    os.abort()


def nonsense(child: Child) -> int:
    """Says what no child should say."""
    child.say(event="what is this?")
    child.say(event="ready")
    child.say(event="ready")
    child.say(event="drained")
    child.leash.sendall(b"not json\n")
    return child.obey()


def facts(child: Child) -> int:
    """Writes down what it finds itself to be."""
    links = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            links[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that lists
    found = {
        "env": dict(os.environ),
        "links": links,
        "mine": [child.listener.fileno(), child.leash.fileno()],
        "is_leader": os.getsid(0) == os.getpid() == os.getpgid(0),
        "interrupt_ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "terminate_default": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "threads": threading.active_count(),
        "comm": Path("/proc/self/comm").read_text().strip(),
    }
    child.note(f"facts-{child.name}", found)
    return good(child)


WAYS: dict[str, Callable[[Child], int]] = {
    way.__name__: way
    for way in (
        good,
        crashes,
        crashes_later,
        fails,
        mute,
        stubborn,
        family,
        last_words,
        nonsense,
        facts,
    )
}


def behave(child: Child) -> int:
    """Be what the test wants now."""
    ways = child.folder / "ways.json"
    wanted = json.loads(ways.read_text()) if ways.exists() else {}
    return WAYS[wanted.get(child.name, "good")](child)


def run_broker(
    topology: Topology,
    listener: socket.socket,
    leash: socket.socket,
    _: SharedMemory,
    secret: bytes,
) -> int:
    """A broker that says how it is doing."""
    child = Child("broker", Path(topology.source).parent, listener, leash)

    def report() -> None:
        while True:
            child.say(event="stats", queued=3, in_flight=2, completed=1234, failed=0, rate=99.5)
            time.sleep(0.05)

    threading.Thread(target=report, daemon=True).start()
    return behave(child)


def run_worker(
    topology: Topology,
    worker: WorkerConfig,
    listener: socket.socket,
    leash: socket.socket,
    _: SharedMemory,
    slot: Slot,
    key: bytes,
) -> int:
    """A worker of the wanted kind."""
    child = Child(worker.name, Path(topology.source).parent, listener, leash)
    child.running = slot.running
    return behave(child)


def main() -> None:
    """``lb up`` with these children."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("-d", action="store_true")
    parser.add_argument("--timing", type=json.loads, default={})
    arguments = parser.parse_args()

    def start_with_stand_ins(config: str, **_: object) -> int:
        from lbcore.shell.config_file import load

        return start(
            load(config, (), {}),
            Targets(run_broker=run_broker, run_worker=run_worker),
            detach=arguments.d,
            timing=Timing(**{**TIMING, **arguments.timing}),
        )

    # the command itself is replaced, everything around it is the real one
    up.callback = start_with_stand_ins
    sys.exit(run(["up", "-c", arguments.config]))


if __name__ == "__main__":
    main()
