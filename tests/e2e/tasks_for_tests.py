"""Tasks that do to a worker what tests want done to it."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from lbcore import TaskCancelled, task

#: no test waits longer for anything
_PATIENCE_S = 30.0
_arrived = 0
_arrived_lock = threading.Lock()

print("the tasks for tests are imported")


@task
def where() -> str:
    """The name of the worker that runs this."""
    return os.environ["LB_PROC_NAME"]


@task
def process_id() -> int:
    """The process that runs this."""
    return os.getpid()


@task
def environment(names: list[str]) -> dict[str, str | None]:
    """Environment variables of the worker."""
    return {name: os.environ.get(name) for name in names}


@task
def settings() -> dict[str, Any]:
    """What the system lets the worker have."""
    return {
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "input": sys.stdin.read(),
        "name": os.environ["LB_PROC_NAME"],
    }


@task
def hold(started: str, release: str) -> str:
    """Say that it runs by making a file, and run until another one is there."""
    Path(started).touch()
    give_up_at = time.monotonic() + _PATIENCE_S
    while not os.path.exists(release):
        if time.monotonic() > give_up_at:
            raise TimeoutError(release)
        time.sleep(0.002)
    return os.environ["LB_PROC_NAME"]


@task(idempotent=False)
def hold_once(started: str, release: str) -> str:
    """The same, but never to be run twice."""
    with open(started, "a") as file:
        file.write("x")
    return hold(started, release)


@task(idempotent=False)
def write_once(trace: str, number: int, seconds: float = 0.0) -> int:
    """Add a number to a file, never to be run twice."""
    descriptor = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, b"%d\n" % number)
    os.close(descriptor)
    time.sleep(seconds)
    return number


@task
def die(how: str = "kill") -> NoReturn:
    """End the worker's process in one of the ways in which processes end."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segv":
        ctypes.string_at(0)
    os._exit(7)


@task
def die_once(trace: str) -> str:
    """End the worker's process, unless an earlier attempt did."""
    with open(trace, "a") as file:
        file.write(f"{os.environ['LB_PROC_NAME']}\n")
    if Path(trace).read_text().count("\n") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.environ["LB_PROC_NAME"]


@task
def spawn(started: str) -> NoReturn:
    """Start a process that would run for a minute, and wait for it."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    Path(started).write_text(str(child.pid))
    sys.exit(child.wait())


@task
def fail_on(worker: str, seconds: float) -> str:
    """Fail at once on that worker, and take some time on any other."""
    name = os.environ["LB_PROC_NAME"]
    if name == worker:
        raise ConnectionError(name)
    time.sleep(seconds)
    return name


class OddError(Exception):
    """An exception that breaks whoever looks at it."""

    def __init__(self) -> None:
        super().__init__(lambda: None, threading.Lock())

    def __str__(self) -> str:
        raise SystemExit("not even this works")

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("this cannot be pickled")


def _raise(what: str) -> NoReturn:
    match what:
        case "exit":
            sys.exit("bye")
        case "odd":
            raise OddError
        case "group":
            raise ExceptionGroup("two", [ValueError("first"), OSError(2, "second")])
        case "chain":
            try:
                raise KeyError("cause")
            except KeyError as error:
                raise LookupError("consequence") from error
        case "deep":
            _raise(what)
    kinds: dict[str, BaseException] = {
        "value": ValueError("text\x1b[31m\nsecond line \u202e"),
        "system": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "generator": GeneratorExit(),
        "stop": StopIteration(1),
        "cancelled": asyncio.CancelledError(),
        "memory": MemoryError(),
    }
    raise kinds[what]


@task
def fail(what: str) -> NoReturn:
    """Raise something."""
    _raise(what)


@task
async def fail_async(what: str) -> NoReturn:
    """Raise something in a coroutine."""
    await asyncio.sleep(0)
    _raise(what)


@task
def give(what: str) -> Any:
    """Return something that cannot be sent."""
    values: dict[str, Any] = {
        "object": object(),
        "function": _raise,
        "number": 1 << 70,
        "surrogate": "\ud800",
        "cycle": [],
    }
    values["cycle"].append(values["cycle"])
    return values[what]


@task
def blob(count: int) -> bytes:
    """So many bytes."""
    return bytes(count)


@task
def length(value: bytes) -> int:
    """How much arrived."""
    return len(value)


@task
def say(text: str, error: str = "", end: str = "\n") -> None:
    """Print."""
    print(text, end=end)
    if error:
        print(error, file=sys.stderr)


@task
def say_and_hold(text: str, started: str, release: str) -> None:
    """Print, and go on for as long as told."""
    print(text)
    hold(started, release)


@task
async def pause(seconds: float) -> float:
    """Sleep as a coroutine."""
    await asyncio.sleep(seconds)
    return seconds


def _arrive() -> float:
    global _arrived
    with _arrived_lock:
        _arrived += 1
    return time.monotonic() + _PATIENCE_S


@task
def meet(count: int) -> int:
    """Wait, as a thread, until so many are here."""
    give_up_at = _arrive()
    while _arrived < count:
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{_arrived} of {count}")
        time.sleep(0.002)
    return threading.get_ident()


@task
async def meet_async(count: int) -> int:
    """Wait, as a coroutine, until so many are here."""
    give_up_at = _arrive()
    while _arrived < count:
        if time.monotonic() > give_up_at:
            raise TimeoutError(f"{_arrived} of {count}")
        await asyncio.sleep(0.002)
    return threading.get_ident()


@task
def leave() -> None:
    """Let the next ones meet from the start."""
    global _arrived
    _arrived = 0


@task(idempotent=False)
def mark_once(trace: str, word: str, then_die: bool = False) -> None:
    """Leave a word in a file, in no time; and die if asked to."""
    with Path(trace).open("a") as file:
        file.write(f"{word}\n")
    if then_die:
        os._exit(9)


@task
def die_while(exists: str, how: str = "segv") -> str:
    """End the worker's process as long as a file is there."""
    if os.path.exists(exists):
        print("this is the end")
        die(how)
    return "survived"


@task
def cling(started: str) -> NoReturn:
    """Never let go of the request."""
    Path(started).touch()
    while True:
        try:
            time.sleep(_PATIENCE_S)
        except TaskCancelled:
            continue


_hoard: list[bytearray] = []


@task
def grow(step_bytes: int, seconds: float) -> int:
    """Take more and more memory, without end."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up_at:
        _hoard.append(bytearray(b"x") * step_bytes)
        time.sleep(seconds)
    return len(_hoard)


@task
def leak(count: int) -> int:
    """Take so many bytes, and keep them; not before this has returned."""
    pid = os.getpid()
    threading.Timer(0.3, lambda: _hoard.append(bytearray(b"x") * count)).start()
    return pid


@task(idempotent=False)
def mark_slowly(trace: str, word: str, seconds: float) -> str:
    """Leave a word in a file as this begins, and take some time."""
    descriptor = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word}\n".encode())
    os.close(descriptor)
    time.sleep(seconds)
    return word
