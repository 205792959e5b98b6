"""What becomes of clients when their process forks or ends without closing them.

A forked process must not use the connection of the one it comes from, nor close it for that one; a
process that ends says goodbye, so that nothing is computed for nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client_connection import Connection

_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def keep_track(connection: Connection) -> None:
    """See to this one when the process forks or ends."""
    _connections.add(connection)


def _after_fork() -> None:
    for connection in tuple(_connections):
        connection.disown()
    _connections.clear()


def _at_exit() -> None:
    for connection in tuple(_connections):
        with contextlib.suppress(Exception):  # others have to be told as well
            if connection.lost is None:
                connection.part()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
