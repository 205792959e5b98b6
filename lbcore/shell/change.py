"""What somebody wants of a running system, and what the supervisor lends to do it.

The nouns of ``changes.py``; nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lbcore.core.children import Event
from lbcore.core.errors import LBError
from lbcore.core.topology import Topology

from .process import ChildProcess

Kind = Literal["reload", "scale", "drain", "resume", "restart", "learn"]
#: where news of a change goes: a message, and whether it is the last one
Tell = Callable[[Mapping[str, Any], bool], None]


@dataclass(slots=True, kw_only=True)
class Change:
    """One wish, and who wants to hear of it."""

    kind: Kind
    #: who or what asked, for the log: ``lb reload``, ``SIGHUP``, ``config.yaml saved``
    source: str
    names: Sequence[str] = ()
    count: int = 0
    #: counted from what is wanted now
    is_relative: bool = False
    rolling: bool = False
    limit_s: float | None = None
    dry_run: bool = False
    #: nobody waits for a word when nothing has changed
    is_quiet: bool = False
    listeners: list[Tell] = field(default_factory=list)

    def tell(self, message: Mapping[str, Any], last: bool = False) -> None:
        """Say this to everybody who wants to hear of it."""
        for listener in self.listeners:
            listener(message, last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a system was started as, and where changes of that come from."""

    #: as it was started, with the addresses as they were written
    topology: Topology
    #: reads it anew, with the overrides that it was started with; None: it never changes
    load: Callable[[], Topology] | None = None
    #: so many workers were asked for, whatever the file says
    count: int | None = None
    #: the task modules are watched as well
    watch: bool = False


class Refused(LBError):
    """A change that cannot be made."""


class Misspelt(Refused):
    """A command names a worker that there is not: nobody else's business."""


class Host(Protocol):
    """What the supervisor lends."""

    def handle(self, event: Event) -> None:
        """Feed the machine."""

    def watch_process(self, process: ChildProcess) -> None:
        """Read what a process says and prints, and see when it ends."""

    def note(self, level: str, name: str, text: str) -> None:
        """A line in the log and for whoever watches."""

    def settings_changed(self) -> None:
        """Tell every child what holds now."""

    def publish(self) -> None:
        """Let others know how things are, soon."""
