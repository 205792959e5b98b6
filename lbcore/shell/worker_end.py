"""What the threads of a worker share: its link to the broker, its answers, its books.

The main thread runs tasks, the side thread adopts connections, the threads of a pool answer.  Two
locks, taken in this order: ``reading`` by whoever reads the request connection, ``sending`` by
whoever sends there or asks what was sent.  The subclass ``WorkerServer`` runs the tasks.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from queue import SimpleQueue
from time import monotonic, perf_counter
from typing import Any, Final

from loguru import logger

from lbcore.core.errors import (
    Cancelled,
    ProtocolError,
    RequestError,
    Status,
    TaskError,
    TooLarge,
    UnknownTask,
    WorkerLost,
)
from lbcore.core.frames import PROTOCOL_VERSION, Kind, control_frame, reply_frame
from lbcore.core.topology import Topology, WorkerConfig
from lbcore.core.worker import Repeat, Request, WorkerBooks, error_payload

from . import logs
from .cancellation import TaskCancelled, note_unwanted, take_unwanted
from .shared import RingIndex, SharedMemory, Slot
from .tasks import ArgumentError, Task, describe_failure, encode_result
from .worker_link import REQUEST_BYTES_MAX, Link

#: at most one failed request in this time is told of in the log
LOG_FAILURES_S: Final = 0.05
#: how long a broker may take to read a greeting
GREETING_S: Final = 5.0
#: in place of a status: the request has no answer, because it is not this worker's any more
ABANDONED: Final = -1


class Abandoned(Exception):
    """A request that must not run twice may not begin: its broker connection has ended."""


class WorkerEnd:
    """A worker's state; see the module's text for who may do what."""

    def __init__(
        self,
        topology: Topology,
        config: WorkerConfig,
        tasks: dict[str, Task],
        shared: SharedMemory,
        slot: Slot,
    ) -> None:
        self.config = config
        self.frame_bytes_max = topology.limits.frame_bytes
        self.tasks = tasks
        self.books = WorkerBooks()
        #: the present connection; None while there is no broker
        self.link: Link | None = None
        #: the present connection, or the one that was lost last
        self._last: Link | None = None
        #: new connections, for the main thread to serve; None means stop
        self.links: SimpleQueue[Link | None] = SimpleQueue()
        self.reading = threading.Lock()
        self.sending = threading.Lock()
        self.stopping = False
        #: the process's prints; None where they are not captured
        self.capture: logs.OutputCapture | None = None
        self._shared = shared
        self.slot = slot
        self._ring = RingIndex(slot)
        self._starting = threading.Lock()
        #: failed requests are told of from then on, and how many were not
        self._log_failures_at = 0.0
        self._unlogged = 0

    def stop(self) -> None:
        """Finish what runs and return from ``serve``; callable from any thread or signal
        handler."""
        self.stopping = True
        self.links.put(None)
        link = self.link
        if link is not None:
            try:
                link.connection.shutdown(socket.SHUT_RD)
            except OSError:
                return  # it broke by itself

    # ---- what the subclass knows ---------------------------------------------------------------

    def runner(self, link: Link, task: Task) -> Callable[[bytes], Any]:
        """What runs a request of that task in the main thread."""
        raise NotImplementedError

    def running_now(self, link: Link) -> dict[int, str]:
        """Id and task of what runs and is not answered; who asks holds ``sending``."""
        raise NotImplementedError

    def interrupt(self, request_id: int) -> bool:
        """Have a running task end; False when this request does not run."""
        raise NotImplementedError

    def has_read_ahead(self, link: Link) -> None:
        """The side thread has read requests."""
        raise NotImplementedError

    def repeat_interrupts(self) -> bool:
        """Try again where a task could not be interrupted; False when there is none such."""
        raise NotImplementedError

    # ---- connections ---------------------------------------------------------------------------

    def adopt(
        self,
        connection: socket.socket,
        worker: int,
        lease: int | None,
        greeting: Mapping[str, Any],
    ) -> None:
        """A broker has come: from now on it is the one that this worker works for.

        What an earlier one sent and nobody began is dropped: it will be sent again.  What runs
        goes on, and is named in the greeting.  Called by the side thread.
        """
        old = self.link
        if old is not None:
            old.cut()
        link = Link(
            connection,
            worker,
            lease,
            REQUEST_BYTES_MAX,
            self._is_repeat,
            self._number_tasks,
            self._keep_answer,
        )
        with self.reading, self.sending:
            running: dict[int, str] = {}
            if old is not None:
                old.queue.waiting.clear()
                self._collect(old)
            if self._last is not None:
                running = self.running_now(self._last)
            self.link = self._last = link
            begun = [list(each) for each in self.books.begun(running)]
            welcome = {"lb": PROTOCOL_VERSION, "role": "worker", **greeting, "running": begun}
            try:
                connection.settimeout(GREETING_S)
                connection.sendall(control_frame(Kind.WELCOME, welcome))
                connection.settimeout(None)
            except OSError as error:
                logger.warning("the broker did not take the greeting: {}", error)
                link.cut()
        self.links.put(link)

    def lose(self, link: Link) -> None:
        """This connection is over; what was finished and not sent waits for the next one."""
        with self.sending:
            link.queue.waiting.clear()
            self._collect(link)
            if link is self.link:
                self.link = None
            self._deliver()
        link.connection.close()

    def feed(self, link: Link, data: bytes) -> None:
        """Take in bytes of the request connection; the caller holds ``reading``."""
        link.queue.feed(data)
        if link.queue.unwanted:
            for request in link.queue.drop_unwanted():
                self._answer_with(link, request, Cancelled("cancelled before it began"))

    def _number_tasks(self, link: Link) -> None:
        link.number_tasks(self.tasks, self.runner)
        self.deliver()

    def read_ahead(self) -> Link | None:
        """Take in what lies in the connection's buffer, if nobody else reads; returns the link."""
        # when the main thread is reading, there is nothing left to read here
        if not self.reading.acquire(blocking=False):
            return self.link
        try:
            link = self.link
            while link is not None:
                data = link.connection.recv(1 << 16, socket.MSG_DONTWAIT)
                if not data:
                    break
                self.feed(link, data)
                self.has_read_ahead(link)
        except BlockingIOError:
            return self.link
        except (OSError, ProtocolError) as error:
            logger.debug("the broker went away: {}", error)
        finally:
            self.reading.release()
        return self.link

    # ---- answers -------------------------------------------------------------------------------

    def flush(self, link: Link, cpu_s: float = -1.0, wall_s: float = 0.0) -> None:
        """Send the finished answers; ``cpu_s`` of ``wall_s`` seconds were computing."""
        capture = self.capture
        if capture is not None and capture.has_partial:
            capture.finish_lines()
        with self.sending:
            self.send(link, cpu_s / wall_s if cpu_s >= 0.0 and wall_s > 0.0 else -1.0)

    def send(self, link: Link, cpu_share: float = -1.0) -> None:
        """The same; the caller holds ``sending``."""
        if link is not self.link:
            self._collect(link)
            self._deliver()
            return
        data = link.replies.take(cpu_share)
        if data:
            try:
                link.connection.sendall(data)
            except OSError:
                # the broker is gone: the next one gets them, and nothing else begins before that
                self.books.not_sent(data, link.names, monotonic())
                link.queue.waiting.clear()

    @property
    def has_answers(self) -> bool:
        """Whether finished answers wait to be sent."""
        link = self.link
        return link is not None and bool(link.replies.frames or self.books.undelivered)

    def flush_overdue(self, age_s: float) -> None:
        """Send answers that have waited that long: the main thread is in a task that takes
        longer."""
        link = self.link
        if link is None:
            return
        if link.replies.frames and perf_counter() - link.replies.since > age_s:
            self.flush(link)
        elif self.books.undelivered:
            self.read_ahead()
            self.deliver()

    def deliver(self) -> None:
        """Give the present broker what an earlier one did not take."""
        if self.books.undelivered:
            with self.sending:
                self._deliver()

    def _deliver(self) -> None:
        link = self.link
        if link is not None and link.numbers and self.books.undelivered:
            data = self.books.deliver(link.numbers, link.worker)
            try:
                link.connection.sendall(data)
            except OSError:
                self.books.not_sent(data, link.names, monotonic())

    def _collect(self, link: Link) -> None:
        """What finished for this connection and was not sent."""
        if link.replies.frames:
            self.books.not_sent(link.replies.take(), link.names, monotonic())

    def _keep_answer(self, link: Link, number: int, frame: bytes, _: float) -> None:
        self.books.keep(link.numbered[number].name, frame, monotonic())

    # ---- what must not run twice ---------------------------------------------------------------

    def begin_once(self, link: Link, request_id: int) -> None:
        """Leave word that a request begins which must not run twice.

        Raises ``Abandoned`` when its broker may have given it to another worker.  The order
        matters: whoever takes the lease away looks into the ring after that, so either the word is
        found there, or the lease is found gone here.
        """
        with self._starting:
            self.slot.note_start(request_id, monotonic())
        lease = link.lease
        if (
            link is not self.link
            or (lease is not None and not self._shared.holds(self.slot, lease))
            or link.has_ended
        ):
            with self._starting:
                self.slot.take_back_start(request_id)
            raise Abandoned

    def _is_repeat(self, link: Link, request: Request, waiting: Collection[int]) -> bool:
        """A request that was sent before: whether its answer is known or on its way."""
        request_id, number, _ = request
        task = link.numbered.get(number)
        is_here = request_id in waiting or request_id in self.slot.running_ids()
        verdict = self.books.judge(
            request_id,
            (request_id,) if is_here else (),
            idempotent=task is None or task.idempotent,
            started=request_id in self._ring,
        )
        if verdict is Repeat.ANSWER:
            self._say(link, self.books.answer_again(request_id, link.numbers, link.worker))
        elif verdict is Repeat.LOST:
            name = task.name if task is not None else ""
            text = f"{name} was begun and is not idempotent; its answer was lost with a broker"
            error = WorkerLost(text, task=name, worker=self.config.name, reason="answer lost")
            self._answer_with(link, request, error)
        return verdict is not Repeat.RUN

    # ---- taking back ---------------------------------------------------------------------------

    def recall(self) -> list[int]:
        """Requests that have not begun, those still in the connection's buffer included."""
        link = self.read_ahead()
        return [] if link is None else link.queue.recall()

    def cancel(self, request_id: int) -> None:
        """Nobody wants this request any more.  Called by the side thread."""
        link = self.read_ahead()
        if link is None:
            return
        request = link.queue.take_out(request_id)
        if request is not None:
            self._answer_with(link, request, Cancelled("cancelled before it began"))
            return
        note_unwanted(request_id, self.slot.running_ids())
        if not self.interrupt(request_id):
            # it has ended, or is still on its way
            take_unwanted(request_id)
            link.queue.expect_unwanted(request_id)

    def _answer_with(self, link: Link, request: Request, error: RequestError) -> None:
        status = int(error.status or 0)
        payload = error_payload(error)
        self._say(
            link, reply_frame(request[0], request[1], payload, status=status, worker=link.worker)
        )

    def _say(self, link: Link, frame: bytes) -> None:
        """Send one answer past the others: its order does not matter."""
        with self.sending:
            if link is self.link and frame:
                try:
                    link.connection.sendall(frame)
                except OSError:
                    return  # a broker that comes back asks again

    # ---- results and failures ------------------------------------------------------------------

    def encode(self, link: Link, value: Any, number: int) -> bytes:
        """The result of a task as it is sent.  Raises ``TypeError`` or ``TooLarge``."""
        name = link.numbered[number].name
        payload = encode_result(value, name)
        if len(payload) > self.frame_bytes_max:
            raise TooLarge(
                f"task `{name}` returned {len(payload)} bytes; the limit is {self.frame_bytes_max}"
            )
        return payload

    def failure(
        self, link: Link, request_id: int, number: int, error: BaseException
    ) -> tuple[int, bytes]:
        """The status and body of the answer to a request that could not be done."""
        if isinstance(error, Abandoned):
            return ABANDONED, b""
        task = link.numbered.get(number)
        if task is None:
            unknown = UnknownTask(f"{self.config.name} does not have task number {number}")
            return int(Status.UNKNOWN_TASK), error_payload(unknown)
        if isinstance(error, ArgumentError | TooLarge):
            return int(error.status or 0), error_payload(error)
        was_unwanted = take_unwanted(request_id)
        if was_unwanted and isinstance(error, TaskCancelled | asyncio.CancelledError):
            return int(Status.CANCELLED), error_payload(Cancelled("cancelled while it ran"))
        self._log_failure(task, error)
        detail: dict[str, Any] = dict(describe_failure(error))
        message = str(detail.pop("message", ""))
        failed = TaskError(message, task=task.name, worker=self.config.name, **detail)
        return int(Status.TASK_ERROR), error_payload(failed)

    def _log_failure(self, task: Task, error: BaseException) -> None:
        """Tell the log of a failed request; of a flood of them, so many a second."""
        now = perf_counter()
        if now < self._log_failures_at:
            self._unlogged += 1
            return
        self._log_failures_at = now + LOG_FAILURES_S
        more = (
            f" ({self._unlogged} more failures since the last one told of)"
            if self._unlogged
            else ""
        )
        self._unlogged = 0
        logger.opt(exception=error).warning("task {} failed{}", task.name, more)
