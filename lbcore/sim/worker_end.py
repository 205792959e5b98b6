"""What a simulated worker is besides running tasks: its connections, its answers, its books.

The counterpart of ``shell/worker_end`` and ``shell/worker_side``: the side thread adopts
connections and answers recalls and cancels at once, also while tasks run.  ``worker_process`` has
the subclass that runs them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from lbcore.core.errors import Cancelled, RequestError, WorkerLost
from lbcore.core.frames import (
    CONTROL_BYTES_MAX,
    FrameBuffer,
    Kind,
    control_frame,
    decode_body,
    reply_frame,
)
from lbcore.core.topology import WorkerConfig
from lbcore.core.worker import Repeat, Request, WorkerBooks, error_payload

from .network import End
from .worker_link import Link
from .world import Process

if TYPE_CHECKING:
    from .system import System

#: how often it reports its CPU figures
REPORT_S: Final = 0.5
#: how often its side thread looks for answers that wait for the broker's table of tasks
OVERDUE_S: Final = 0.01


class WorkerEnd(Process):
    """One life of one worker, without its tasks."""

    __slots__ = (
        "_controls",
        "_ends",
        "books",
        "config",
        "is_sour",
        "link",
        "memory",
        "pid",
        "slot",
        "slowness",
        "system",
    )

    def __init__(self, system: System, config: WorkerConfig, pid: int) -> None:
        super().__init__(system.world, config.name)
        self.system = system
        self.config = config
        self.pid = pid
        self.books = system.books
        #: what it remembers beyond one connection
        self.memory = WorkerBooks()
        self.slot = system.shared.slot(config.name)
        self.slot.running.clear()
        self.slot.pid = pid
        #: the present connection to a broker
        self.link: Link | None = None
        #: how many times longer everything takes at present
        self.slowness = 1.0
        self.is_sour = False
        self._controls: list[End] = []
        #: every connection it has, in the order in which they came
        self._ends: list[End] = []
        self.later(REPORT_S * system.world.random.random(), self._report)

    # ---- what the subclass knows ---------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a task runs."""
        raise NotImplementedError

    def running_now(self) -> dict[int, str]:
        """Id and task of what runs and is not answered."""
        raise NotImplementedError

    def interrupt(self, request_id: int) -> bool:
        """Have a running task end, if it listens; False when this request does not run."""
        raise NotImplementedError

    def catch_up(self) -> None:
        """See how far the tasks have come that run between two events."""
        raise NotImplementedError

    def run_waiting(self, link: Link) -> None:
        """Begin what can begin now; read on when nothing is left."""
        raise NotImplementedError

    def read_on(self) -> None:
        """Read the present connection when the main thread is free to."""
        raise NotImplementedError

    def close_all(self) -> None:
        """The process has died, and its connections with it."""
        for end in self._ends:
            end.abort()

    # ---- the side thread -----------------------------------------------------------------------

    def accept(self, end: End) -> None:
        """A broker connects; its greeting says what for."""
        buffer = FrameBuffer(CONTROL_BYTES_MAX)
        end.on_data = lambda data: self._read_side(end, buffer, data)
        end.on_end = lambda: self._drop(end)
        self._ends.append(end)
        end.attach(self)

    def _read_side(self, end: End, buffer: FrameBuffer, data: bytes) -> None:
        for kind, request_id, body in buffer.feed(data):
            if kind == Kind.HELLO:
                hello = decode_body(body)
                if hello["channel"] == "control":
                    end.write(control_frame(Kind.WELCOME, {"role": "worker"}))
                    self._controls.append(end)
                else:
                    self._adopt(end, hello["worker"], tuple(hello["lease"]))
            elif kind == Kind.RECALL and end is self._controls[-1]:
                end.write(control_frame(Kind.RECALLED, self._recall()))
            elif kind == Kind.CANCEL and end is self._controls[-1]:
                self._cancel(request_id)
            else:
                # of a broker connection that has a successor
                self._drop(end)
                return

    def _drop(self, end: End) -> None:
        if end in self._controls:
            self._controls.remove(end)
        end.close()
        if end in self._ends:
            self._ends.remove(end)

    def _adopt(self, end: End, number: int, lease: tuple[int, int]) -> None:
        """From now on it works for this broker; what an earlier one sent is dropped, unbegun."""
        old = self.link
        self.catch_up()
        if old is not None:
            self._drop(old.end)
            old.queue.waiting.clear()
            self.collect(old)
        self.link = link = Link(end, number, lease, self.system, self._is_repeat, self._keep)
        welcome = {
            "name": self.name,
            "pid": self.pid,
            "tasks": self.system.task_specs(self.name),
            "running": [list(each) for each in self.memory.begun(self.running_now())],
        }
        end.write(control_frame(Kind.WELCOME, welcome))
        end.on_data = lambda data: self._read_requests(link, data)
        end.on_end = lambda: self._lose(link)
        self.read_on()
        self._look_for_undelivered()

    def _look_for_undelivered(self) -> None:
        if self.memory.undelivered and self.link is not None:
            self._read_ahead()
            self.deliver()
            self.later(OVERDUE_S, self._look_for_undelivered)

    def _read_ahead(self) -> None:
        """Take in what has come, if the main thread is not reading itself."""
        link = self.link
        if link is not None and not link.end.reading and (data := link.end.read()):
            self._feed(link, data)

    def _recall(self) -> list[int]:
        self.catch_up()
        self._read_ahead()
        ids = self.link.queue.recall() if self.link is not None else []
        if self.world.tracing:
            self.world.say(f"{self.name} gives back {len(ids)}")
        return ids

    def _cancel(self, request_id: int) -> None:
        """Nobody wants this request any more."""
        if self.world.tracing:
            self.world.say(f"{self.name} is to cancel {request_id >> 32}:{request_id & 0xFFFFFFFF}")
        self.catch_up()
        self._read_ahead()
        link = self.link
        if link is None:
            return
        request = link.queue.take_out(request_id)
        if request is not None:
            self._answer_with(link, request, Cancelled("cancelled before it began"))
            return
        if not self.interrupt(request_id):
            link.queue.expect_unwanted(request_id)

    def _report(self) -> None:
        busy = 1.0 if self.is_busy else 0.0
        report = {
            "at": self.world.now,
            "wall_s": REPORT_S,
            "cpu_s": REPORT_S * busy,
            "delay_s": REPORT_S * busy * max(0.0, 1.0 - 1.0 / self.slowness),
            "cores": 1,
            "busy_s": REPORT_S * busy,
            "rss_bytes": 1 << 24,
        }
        frame = control_frame(Kind.REPORT, report)
        for end in self._controls:
            end.write(frame)
        self.later(REPORT_S, self._report)

    # ---- the connection ------------------------------------------------------------------------

    def _read_requests(self, link: Link, data: bytes) -> None:
        self._feed(link, data)
        self.run_waiting(link)

    def _feed(self, link: Link, data: bytes) -> None:
        queue = link.queue
        if queue.feed(data):
            self.deliver()
        if queue.unwanted:
            for request in queue.drop_unwanted():
                self._answer_with(link, request, Cancelled("cancelled before it began"))

    def _lose(self, link: Link) -> None:
        """This connection is over; what was finished and not sent waits for the next one."""
        self._drop(link.end)
        link.queue.waiting.clear()
        self.collect(link)
        if link is self.link:
            self.link = None
        self.deliver()

    def collect(self, link: Link) -> None:
        if link.replies.frames:
            self.memory.not_sent(link.replies.take(), link.queue.names, self.world.now)

    def deliver(self) -> None:
        link = self.link
        if self.memory.undelivered and link is not None and link.numbers:
            data = self.memory.deliver(link.numbers, link.worker)
            if not link.end.write(data):
                self.memory.not_sent(data, link.queue.names, self.world.now)

    def flush(self, link: Link) -> None:
        if link is not self.link:
            self.collect(link)
            self.deliver()
            return
        data = link.replies.take(0.5)
        if data and not link.end.write(data):
            self.memory.not_sent(data, link.queue.names, self.world.now)
            link.queue.waiting.clear()

    def _keep(self, link: Link, number: int, frame: bytes) -> None:
        self.memory.keep(link.queue.names[number], frame, self.world.now)

    def _is_repeat(self, link: Link, request: Request, waiting: Collection[int]) -> bool:
        """A request that was sent before: whether its answer is known or on its way."""
        request_id, number, _ = request
        self.catch_up()
        is_here = request_id in waiting or request_id in self.slot.running.values()
        profile = link.profiles.get(number)
        verdict = self.memory.judge(
            request_id,
            (request_id,) if is_here else (),
            idempotent=profile is None or profile.idempotent,
            started=request_id in self.slot.started,
        )
        if self.world.tracing:
            self.world.say(f"{self.name} has {request_id & 0xFFFFFFFF} again: {verdict.name}")
        if verdict is Repeat.ANSWER:
            link.end.write(self.memory.answer_again(request_id, link.numbers, link.worker))
        elif verdict is Repeat.LOST:
            self._answer_with(link, request, WorkerLost("its answer was lost with a broker"))
        return verdict is not Repeat.RUN

    def _answer_with(self, link: Link, request: Request, error: RequestError) -> None:
        status, body = int(error.status or 0), error_payload(error)
        if link is self.link:
            frame = reply_frame(request[0], request[1], body, status=status, worker=link.worker)
            link.end.write(frame)
