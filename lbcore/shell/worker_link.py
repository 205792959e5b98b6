"""One connection of a worker to its broker: what came over it, and how it names tasks.

A worker has one after the other.  Everything that belongs to a connection (requests that wait,
answers on their way, the numbers of tasks) is in its ``Link``, so that a task which still runs for
an earlier broker finds its own things, and nothing of two brokers mixes.  Called by
``worker_process.py``, ``worker_pool.py`` and the side thread.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Collection
from typing import Any, Final

from lbcore.core.worker import ReplyBuffer, Request, WorkerQueue

from .tasks import Task

#: the broker has checked how large a request is, by a limit that may have changed since
REQUEST_BYTES_MAX: Final = (1 << 32) - 1
#: what ``poll`` says of a connection whose other side has gone, also when unread data comes before
_GONE: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


class Link:
    """One broker connection."""

    def __init__(
        self,
        connection: socket.socket,
        worker: int,
        lease: int | None,
        frame_bytes_max: int,
        is_repeat: Callable[[Link, Request, Collection[int]], bool],
        on_tasks: Callable[[Link], None],
        keep: Callable[[Link, int, bytes, float], None],
    ) -> None:
        """``worker`` is the number that the broker gave, ``lease`` what the slot must hold."""
        self.connection = connection
        self.worker = worker
        self.lease = lease
        self.queue = WorkerQueue(
            frame_bytes_max,
            lambda request, waiting: is_repeat(self, request, waiting),
            lambda: on_tasks(self),
        )
        self.replies = ReplyBuffer(worker, lambda *answer: keep(self, *answer))
        #: task number -> task, as this broker numbers them, and the same by name
        self.numbered: dict[int, Task] = {}
        self.numbers: dict[str, int] = {}
        #: task number -> what runs one request of it in the main thread
        self.runners: dict[int, Callable[[bytes], Any]] = {}
        #: what the main thread runs now, or ran last
        self.running: Request | None = None

    def number_tasks(
        self, tasks: dict[str, Task], runner: Callable[[Link, Task], Callable[[bytes], Any]]
    ) -> None:
        """The broker sent its table: ``tasks`` is what this worker has, by any name."""
        named = {number: tasks[name] for number, name in self.queue.names.items() if name in tasks}
        self.numbers = {task.name: number for number, task in named.items()}
        # in place: a loop that runs holds on to it
        self.numbered.clear()
        self.numbered.update(named)
        self.runners.clear()
        self.runners.update((number, runner(self, task)) for number, task in named.items())
        self.replies.prompt = frozenset(
            number for number, task in named.items() if not task.idempotent
        )
        self.replies.tiny.clear()

    @property
    def names(self) -> dict[int, str]:
        """Task number -> the task's own name."""
        return {number: task.name for number, task in self.numbered.items()}

    @property
    def has_ended(self) -> bool:
        """Whether the broker's side is known to be gone."""
        # one of its own for each look: threads of a pool look at the same time
        look = select.poll()
        try:
            look.register(self.connection, _GONE)
            return bool(look.poll(0))
        except (OSError, ValueError):
            return True

    def cut(self) -> None:
        """Take in and send nothing more; wakes whoever waits for that."""
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it broke by itself
