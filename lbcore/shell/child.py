"""What runs in a forked child before its own work: a clean process that dies with its parent.

A fork starts as a copy of the supervisor: its signal handlers, its sockets, its log file.  All of
that is given up here, in an order that matters: first the promise to die with the parent, then the
signals, then the copies.  Never returns to the supervisor's stack.  Called by ``process.py``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from multiprocessing import parent_process
from typing import Final

import msgspec

#: read by numeric libraries when they are loaded; N workers with a thread per core each are slower
#: than one
THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

#: exit code of a child whose settings the system refuses
EXIT_SETTINGS: Final = 2

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
#: what Linux keeps of a process's short name
_SHORT_NAME_BYTES: Final = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPlan:
    """What a child is to be; the same for every restart of it."""

    name: str
    #: from the YAML; wins over what lb sets
    env: Mapping[str, str] = field(default_factory=dict)
    #: cores it may run on; empty means those of the supervisor
    cpus: tuple[int, ...] = ()
    nice: int = 0
    #: a listening socket that it serves
    listener: socket.socket | None = None


#: a child's own work: gets its end of the leash, returns its exit code
Target = Callable[[socket.socket], int]


class _Refused(Exception):
    """The system does not allow a setting of the plan."""


def run_child(
    plan: ChildPlan,
    target: Target,
    leash: socket.socket,
    output: int,
    parent_pid: int,
    release: Callable[[], None],
) -> None:
    """Become what the plan says, run the target, and end with its exit code (``SystemExit``).

    ``output`` is the pipe for stdout and stderr, ``release`` closes what the supervisor holds.
    """
    die_with_parent(parent_pid)
    reset_signals()
    os.setsid()
    release()
    replace_standard_streams(output)
    keep = {0, 1, 2, leash.fileno()}
    if plan.listener is not None:
        keep.add(plan.listener.fileno())
    parent = parent_process()
    if parent is not None and isinstance(parent.sentinel, int):
        keep.add(parent.sentinel)
    close_descriptors(keep)
    set_short_name(f"lb-{plan.name}")
    os.environ.update(child_environment(plan))
    try:
        _apply_limits(plan)
    except _Refused as error:
        report = {"event": "failed", "error": str(error), "detail": "", "code": EXIT_SETTINGS}
        leash.sendall(msgspec.json.encode(report) + b"\n")
        raise SystemExit(EXIT_SETTINGS) from None
    raise SystemExit(target(leash))


def die_with_parent(parent_pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent ends, however that happens (Linux).

    That holds on when it becomes another program.  Elsewhere the end of the leash has to do: a
    child leaves when it reads end-of-file there.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent_pid:
        # the parent ended between the fork and the line above: no signal will come
        os._exit(1)


def reset_signals() -> None:
    """Drop the supervisor's handlers.  A terminal's Ctrl-C is the launcher's to act upon."""
    signal.set_wakeup_fd(-1)
    for number in (
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGCHLD,
        signal.SIGTTIN,
        signal.SIGTTOU,
    ):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def replace_standard_streams(output: int) -> None:
    """No input; what C code and dying interpreters write goes to the supervisor's pipe."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    for descriptor in (1, 2):
        os.dup2(output if output >= 0 else nothing, descriptor)
    # multiprocessing gave it another descriptor, which is about to be closed
    sys.stdin = os.fdopen(0, closefd=False)


def close_descriptors(keep: Collection[int]) -> None:
    """Close every file descriptor that is not in ``keep``.

    The objects that own descriptors must have been closed before: one that is freed later would
    close whatever has its number by then.
    """
    try:
        present = sorted(int(name) for name in os.listdir("/dev/fd"))
    except OSError:
        present = list(range(os.sysconf("SC_OPEN_MAX")))
    for descriptor in present:
        if descriptor not in keep:
            try:
                os.close(descriptor)
            except OSError:
                continue  # the one that listed the folder


def set_short_name(name: str) -> None:
    """The name that ``top`` and ``ps -o comm`` show (Linux)."""
    if sys.platform == "linux":
        short = os.fsencode(name)[:_SHORT_NAME_BYTES]
        ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(short), 0, 0, 0)


def child_environment(plan: ChildPlan) -> dict[str, str]:
    """The variables that a child gets on top of the supervisor's own."""
    return {
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        "PYTHONUNBUFFERED": "1",
        "LB_PROC_NAME": plan.name,
        **plan.env,
    }


def _apply_limits(plan: ChildPlan) -> None:
    if plan.cpus and hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        if missing := sorted(set(plan.cpus) - allowed):
            raise _Refused(
                f"cpus: {', '.join(map(str, missing))} cannot be used here; "
                f"this machine allows {', '.join(map(str, sorted(allowed)))}"
            )
        os.sched_setaffinity(0, plan.cpus)
    if plan.nice:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, plan.nice)
        except OSError as error:
            raise _Refused(f"nice: {plan.nice} is refused: {error.strerror}") from None
