"""One connection of a simulated worker to a broker; the counterpart of ``shell/worker_link``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from lbcore.core.worker import ReplyBuffer, Request, WorkerQueue

from .catalogue import BY_NAME, Profile
from .network import End

if TYPE_CHECKING:
    from .system import System


class Link:
    """What came over it, what is to leave over it, and how its broker numbers tasks."""

    __slots__ = ("end", "lease", "numbers", "profiles", "queue", "replies", "worker")

    def __init__(
        self,
        end: End,
        worker: int,
        lease: tuple[int, int],
        system: System,
        is_repeat: Callable[[Link, Request, Collection[int]], bool],
        keep: Callable[[Link, int, bytes], None],
    ) -> None:
        self.end = end
        #: the number that the broker gave
        self.worker = worker
        self.lease = lease
        self.queue = WorkerQueue(
            system.topology.limits.frame_bytes,
            lambda request, waiting: is_repeat(self, request, waiting),
            self.number_tasks,
        )
        self.replies = ReplyBuffer(worker, lambda task, frame, _: keep(self, task, frame))
        self.profiles: dict[int, Profile] = {}
        self.numbers: dict[str, int] = {}

    def number_tasks(self) -> None:
        """The broker sent its table."""
        named = {
            number: BY_NAME[name] for number, name in self.queue.names.items() if name in BY_NAME
        }
        self.profiles = named
        self.numbers = {profile.name: number for number, profile in named.items()}
        self.replies.prompt = frozenset(
            number for number, profile in named.items() if not profile.idempotent
        )
        self.replies.tiny.clear()
