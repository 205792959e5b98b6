"""Where changes come from: saved files, the control socket, signals.

Turns each into a ``Change`` and asks for it.  Called by ``supervisor.py``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final

from lbcore.core.schema import WORKERS_MAX

from .change import Change, Refused, Tell, Wanted
from .changes import Changes
from .file_watch import FileWatch

#: how often files are looked at
LOOK_S: Final = 0.25
#: of a list of names in a message
_NAMES_MAX: Final = 10_000


class Files:
    """Watches the topology's file, and with ``--watch`` those that the tasks come from."""

    def __init__(self, changes: Changes, wanted: Wanted) -> None:
        self._changes = changes
        self._source = wanted.topology.source
        self._with_tasks = wanted.watch
        self._watch = FileWatch([self._source] if wanted.load is not None else [])
        self._modules = FileWatch()
        self._knows_modules = False
        self.due = time.monotonic()

    def look(self) -> None:
        """See what was saved since the last look."""
        self.due = time.monotonic() + LOOK_S
        if self._watch.look():
            name = os.path.basename(self._source)
            self._changes.ask(Change(kind="reload", source=f"{name} saved", is_quiet=True))
        if not self._with_tasks:
            return
        if not self._knows_modules:
            self._knows_modules = True
            self._changes.ask(Change(kind="learn", source="up --watch"))
        files = {name for name in self._changes.wanted.tasks if name.endswith(".py")}
        self._modules.watch(sorted(files | set(self._changes.sources)))
        if changed := self._modules.look():
            names = ", ".join(os.path.basename(path) for path in changed[:3])
            source = f"{names}{' and others' if len(changed) > 3 else ''} saved"
            self._changes.ask(Change(kind="restart", source=source, rolling=True))


def take_request(changes: Changes, request: Mapping[str, Any], tell: Tell) -> None:
    """What a command asks for, over the control socket."""
    try:
        change = _change_of(request)
    except (Refused, TypeError, ValueError, OverflowError) as error:
        tell({"event": "failed", "error": str(error), "code": 2}, True)
        return
    change.listeners.append(tell)
    changes.ask(change)


def _change_of(request: Mapping[str, Any]) -> Change:
    """Raises ``Refused``, ``TypeError`` and ``ValueError`` for what no command asks."""
    operation, names = request.get("op"), request.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refused("`names` is no list of names")
    del names[_NAMES_MAX:]
    source = f"lb {operation}"
    match operation:
        case "reload":
            return Change(kind="reload", source=source, dry_run=bool(request.get("dry_run")))
        case "scale":
            count = int(request.get("count", 0))
            if not 1 <= count <= WORKERS_MAX:
                raise Refused(f"a number of workers from 1 to {WORKERS_MAX}, not {count}")
            return Change(kind="scale", source=f"{source} {count}", count=count)
        case "drain" | "resume" if names:
            return Change(kind=operation, source=f"{source} {' '.join(names)}", names=names)
        case "restart":
            limit_s = request.get("limit_s")
            return Change(
                kind="restart",
                source=source,
                names=names,
                rolling=bool(request.get("rolling")),
                limit_s=None if limit_s is None else float(limit_s),
            )
        case _:
            raise Refused(f"nobody knows how to {operation!r:.60}")
