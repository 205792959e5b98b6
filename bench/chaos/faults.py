"""What is done to a running system.  Each fault takes a moment, undoes what can be undone, and
leaves a line in the run's ``events``."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from random import Random
from typing import Final

import psutil

from .system import GONE_S, ChaosSystem, wait_until

Fault = Callable[[ChaosSystem, Random], None]

#: how long a process is stopped, seconds: shorter and longer than every heartbeat
STOP_S: Final = (0.05, 2.5)
#: how long a process has no descriptors left, and how long the logs cannot be written
STARVED_S: Final = 1.0


def kill_worker(system: ChaosSystem, rng: Random) -> None:
    """SIGKILL of a worker."""
    name = rng.choice(system.workers() or ["worker-1"])
    system.note("kill", name=name, pid=system.signal(name, signal.SIGKILL))


def kill_broker(system: ChaosSystem, rng: Random) -> None:
    """SIGKILL of the broker."""
    system.note("kill", name="broker", pid=system.signal("broker", signal.SIGKILL))


def kill_two(system: ChaosSystem, rng: Random) -> None:
    """SIGKILL of the broker and of a worker in the same moment, in either order."""
    names = ["broker", rng.choice(system.workers() or ["worker-1"])]
    rng.shuffle(names)
    for name in names:
        system.note("kill", name=name, pid=system.signal(name, signal.SIGKILL))


def stop_worker(system: ChaosSystem, rng: Random) -> None:
    """SIGSTOP of a worker for a while."""
    _stop(system, rng, rng.choice(system.workers() or ["worker-1"]))


def stop_broker(system: ChaosSystem, rng: Random) -> None:
    """SIGSTOP of the broker for a while."""
    _stop(system, rng, "broker")


def stop_supervisor(system: ChaosSystem, rng: Random) -> None:
    """SIGSTOP of the supervisor; nobody is restarted meanwhile."""
    _stop(system, rng, "supervisor")


def _stop(system: ChaosSystem, rng: Random, name: str) -> None:
    pid = system.signal(name, signal.SIGSTOP)
    system.note("stop", name=name, pid=pid)
    if pid is None:
        return
    time.sleep(rng.uniform(*STOP_S))
    try:
        psutil.Process(pid).send_signal(signal.SIGCONT)
    except psutil.NoSuchProcess:
        return
    system.note("continue", name=name, pid=pid)


def kill_supervisor(system: ChaosSystem, rng: Random) -> None:
    """SIGKILL of the supervisor, with which everything ends; then a new start."""
    began = time.monotonic()
    pid = system.signal("supervisor", signal.SIGKILL)
    system.note("kill", name="supervisor", pid=pid)
    # the clients are ours too, and live on
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    wait_until(
        lambda: not [each for each in system.survivors() if each.pid not in ours],
        "the end of all after the supervisor's",
        GONE_S + 8.0,
    )
    gone_s = time.monotonic() - began
    system.up()
    system.note("up", gone_s=round(gone_s, 3))


def starve_broker(system: ChaosSystem, rng: Random) -> None:
    """No descriptors for the broker: whoever connects meanwhile has to wait."""
    _starve(system, "broker")


def starve_supervisor(system: ChaosSystem, rng: Random) -> None:
    """No descriptors for the supervisor, while a worker dies: it cannot fork another at first."""
    name = rng.choice(system.workers() or ["worker-1"])
    _starve(system, "supervisor", lambda: system.signal(name, signal.SIGKILL))


def _starve(system: ChaosSystem, name: str, meanwhile: Callable[[], object] = int) -> None:
    pid = system.pid(name)
    if pid is None:
        return
    try:
        used = max(int(fd) for fd in _descriptors(pid))
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(used + 1, soft), hard))
    except (ProcessLookupError, FileNotFoundError, PermissionError, ValueError):
        return
    system.note("starve", name=name, pid=pid)
    try:
        meanwhile()
        for _ in range(5):
            _knock(system)
        time.sleep(STARVED_S)
    finally:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        except ProcessLookupError:
            system.note("gone", name=name, pid=pid)


def _descriptors(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


def _knock(system: ChaosSystem) -> None:
    """A stranger that connects and leaves."""
    state = system.state()
    if state is None:
        return
    host, _, port = state.broker.address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1.0).close()
    except OSError:
        return


def full_disk(system: ChaosSystem, rng: Random) -> None:
    """The log of a worker is on a full disk, from its restart on, for a while."""
    name = rng.choice(system.workers() or ["worker-1"])
    log = system.folder / "logs" / f"{name}.log"
    kept = log.with_suffix(".kept")
    log.rename(kept)
    log.symlink_to("/dev/full")
    try:
        system.note("full disk", name=name, pid=system.signal(name, signal.SIGKILL))
        time.sleep(STARVED_S)
    finally:
        log.unlink()
        kept.rename(log)
    # it has the full disk open until it starts again
    system.note("kill", name=name, pid=system.signal(name, signal.SIGKILL))


def unwritable_logs(system: ChaosSystem, rng: Random) -> None:
    """The folder of the logs is gone and a file is in its place while a worker restarts."""
    name = rng.choice(system.workers() or ["worker-1"])
    logs = system.folder / "logs"
    kept = system.folder / "logs.kept"
    logs.rename(kept)
    logs.write_text("this is no folder\n")
    try:
        system.note("unwritable logs", name=name, pid=system.signal(name, signal.SIGKILL))
        time.sleep(STARVED_S)
    finally:
        logs.unlink()
        kept.rename(logs)


#: faults that only concern what is in memory of a living supervisor, with their weights
FAULTS: Final[dict[str, tuple[Fault, float]]] = {
    "kill_worker": (kill_worker, 6.0),
    "kill_broker": (kill_broker, 4.0),
    "kill_two": (kill_two, 2.0),
    "stop_worker": (stop_worker, 2.0),
    "stop_broker": (stop_broker, 1.0),
    "stop_supervisor": (stop_supervisor, 0.5),
    "starve_broker": (starve_broker, 0.5),
    "starve_supervisor": (starve_supervisor, 0.5),
    "full_disk": (full_disk, 0.5),
    "unwritable_logs": (unwritable_logs, 0.5),
    "kill_supervisor": (kill_supervisor, 0.5),
}
