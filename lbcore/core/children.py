"""The nouns of supervision: states, the table of moves, events in, actions out, one child's record.

``supervision.py`` is the machine that uses them; ``shell/supervisor.py`` makes the events and
performs the actions.  Nothing here decides or does anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

#: exit code when the system could not be started, or nobody is left to do its work
EXIT_UNAVAILABLE: Final = 3


class ChildState(StrEnum):
    """The states of a child, and of the whole system, in the names process managers use."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    BACKOFF = "BACKOFF"
    DRAIN = "DRAIN"
    STOPPING = "STOPPING"
    EXITED = "EXITED"
    FATAL = "FATAL"


class Role(StrEnum):
    """What a child is for; the system cannot live without its broker."""

    BROKER = "broker"
    WORKER = "worker"


class Wish(StrEnum):
    """What is to become of a worker once it has nothing left to do."""

    NONE = "none"
    RESTART = "restart"
    REMOVE = "remove"


class Trigger(StrEnum):
    """Why a child changes its state."""

    #: a process is forked for it
    SPAWN = "spawn"
    #: it said that it is ready
    READY = "ready"
    #: it said that it cannot start, or did not start in time
    FAIL = "fail"
    #: its process ended unasked and will be started again
    CRASH = "crash"
    #: its process ended unasked, once too often
    GIVE_UP = "give up"
    #: it was asked to finish what it accepted
    DRAIN = "drain"
    #: it may take new work again
    RESUME = "resume"
    #: it was asked to stop
    STOP = "stop"
    #: its process ended after it was asked to
    END = "end"


_S, _T = ChildState, Trigger

TRANSITIONS: Final[Mapping[tuple[ChildState, Trigger], ChildState]] = MappingProxyType(
    {
        (_S.EXITED, _T.SPAWN): _S.STARTING,
        (_S.STARTING, _T.READY): _S.RUNNING,
        (_S.STARTING, _T.FAIL): _S.FATAL,
        (_S.STARTING, _T.CRASH): _S.BACKOFF,
        (_S.STARTING, _T.GIVE_UP): _S.FATAL,
        (_S.STARTING, _T.STOP): _S.STOPPING,
        (_S.RUNNING, _T.CRASH): _S.BACKOFF,
        (_S.RUNNING, _T.GIVE_UP): _S.FATAL,
        (_S.RUNNING, _T.DRAIN): _S.DRAIN,
        (_S.RUNNING, _T.STOP): _S.STOPPING,
        (_S.BACKOFF, _T.SPAWN): _S.STARTING,
        (_S.BACKOFF, _T.STOP): _S.EXITED,
        (_S.DRAIN, _T.RESUME): _S.RUNNING,
        (_S.DRAIN, _T.STOP): _S.STOPPING,
        (_S.DRAIN, _T.CRASH): _S.BACKOFF,
        (_S.DRAIN, _T.GIVE_UP): _S.FATAL,
        (_S.DRAIN, _T.END): _S.EXITED,
        (_S.STOPPING, _T.END): _S.EXITED,
        (_S.FATAL, _T.SPAWN): _S.STARTING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Every duration and bound of supervision, in seconds unless the name says otherwise."""

    #: delay before the first restart; doubles with each further one
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    #: the same for the broker: while it is away everybody waits
    broker_backoff_first_s: float = 0.02
    broker_backoff_max_s: float = 0.3
    #: a delay is scaled by a random factor of 1 +- this, so that many do not restart in step
    backoff_jitter: float = 0.2
    #: a child that ran this long starts again with the first delay
    stable_s: float = 30.0
    #: more restarts than this within the window park a child
    restarts_max: int = 5
    restart_window_s: float = 30.0
    #: how long a child may take to say that it is ready
    start_limit_s: float = 30.0
    #: how long a child that reported a failed start may take to end by itself
    failed_grace_s: float = 1.0
    #: how long the broker may take to finish what it accepted
    drain_s: float = 30.0
    #: from the stop request to SIGTERM, and to SIGKILL
    term_after_s: float = 1.0
    kill_after_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildAdded:
    """A child belongs to the system from now on; it is started at once."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildReady:
    """A child said that it does its work."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildFailed:
    """A child said that it cannot start; ``code`` is what the whole run exits with for it."""

    name: str
    error: str
    code: int = EXIT_UNAVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildDied:
    """A child's process ended, or could not be forked; ``cause`` such as ``signal 9``."""

    name: str
    cause: str
    #: towards the restarts that are allowed; not when it was running a request, which is more
    #: likely to be at fault, and not when a machine that runs it already has no room for another
    counts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerDrained:
    """The broker has answered everything that it accepted."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDrained:
    """The broker has nothing left with a worker that it was told to spare."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRemoved:
    """A worker no longer belongs to the system: it is drained, stopped and forgotten."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldRequested:
    """A worker is to get nothing new, and to stay as it is when it has finished."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeRequested:
    """A worker that was held may take new work again."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartRequested:
    """These workers are to have new processes: each is drained, stopped and started.

    ``rolling``: one after the other.  After ``limit_s`` one that is not drained is stopped all the
    same; None waits as long as it takes.
    """

    names: tuple[str, ...]
    rolling: bool = False
    limit_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """Somebody wants the system to stop; a second time, or with ``at_once``, without waiting."""

    reason: str
    code: int = 0
    at_once: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """Nothing happened but time."""


Event: TypeAlias = (
    ChildAdded
    | ChildReady
    | ChildFailed
    | ChildDied
    | ChildRemoved
    | BrokerDrained
    | WorkerDrained
    | HoldRequested
    | ResumeRequested
    | RestartRequested
    | StopRequested
    | TimePassed
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """Fork this child's process."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendDrain:
    """Tell this child over its leash to finish what it accepted and to take nothing new."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendStop:
    """Tell this child over its leash to finish what runs and to exit."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendSignal:
    """Send this child's process (with its whole group, for SIGKILL) a signal."""

    name: str
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A line for the log; ``name`` is the child it is about, empty for the system."""

    level: str
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """This child has ended and does not belong to the system any more: let go of what it had."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetChanged:
    """Some child's state changed: tell the broker and whoever watches."""


Action: TypeAlias = Spawn | SendDrain | SendStop | SendSignal | Note | Forget | FleetChanged


@dataclass(slots=True, kw_only=True)
class Child:
    """What the supervisor knows about one child; only ``Supervision`` changes it."""

    name: str
    role: Role
    state: ChildState = ChildState.EXITED
    #: a process exists for it; FATAL and STOPPING children may still have one
    alive: bool = False
    #: was RUNNING at least once
    proven: bool = False
    #: since when it is in its state, monotonic
    since: float = 0.0
    #: when something is due for it, by its state; None when nothing is
    deadline: float | None = None
    #: how often it was started again
    restarts: int = 0
    #: delays taken since it last ran stably
    backoffs: int = 0
    #: when the last restarts happened, oldest first, at most ``restarts_max``
    restart_times: deque[float] = field(default_factory=deque)
    #: why it died or failed last, and whether that counts towards ``restart_times``
    cause: str = ""
    death_counts: bool = True
    #: its present process said that it cannot start, and another one will be tried
    refused: bool = False
    #: when it was asked to stop
    stop_at: float = 0.0
    #: what it is being drained for
    wish: Wish = Wish.NONE
    #: its restart waits for its turn
    rolling: bool = False
    #: how long its draining may take; None: as long as it takes
    limit_s: float | None = None
    #: somebody wants it to get no new work
    held: bool = False
    #: in DRAIN: the broker has nothing left with it
    drained: bool = False
    #: signals sent to the present process, so that each is sent once
    signals: set[str] = field(default_factory=set)
