"""A simulated worker process around ``core.worker``: the threads that run tasks.

It mirrors ``shell/worker_process`` and ``shell/worker_pool``: the main thread reads requests only
between tasks.  Tiny tasks run many to one event; whoever looks in between (a recall, a death, a
greeting) sees how far they have come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from lbcore.core.errors import Cancelled, Status, TaskError
from lbcore.core.topology import WorkerConfig
from lbcore.core.worker import Request, error_payload

from .catalogue import Deed, Profile
from .worker_end import WorkerEnd
from .worker_link import Link

if TYPE_CHECKING:
    from .system import System

#: the most tiny tasks that run between two events
BATCH_MAX: Final = 64
#: how long a task may take to end that is told to
INTERRUPT_S: Final = 0.001

_FAILED: Final = error_payload(TaskError("it fails", type="ValueError", traceback="..."))
_STOPPED: Final = error_payload(Cancelled("cancelled while it ran"))


class _Task(NamedTuple):
    """What a thread runs."""

    link: Link
    request: Request
    profile: Profile
    began: float


class WorkerProcess(WorkerEnd):
    """One life of one worker."""

    __slots__ = (
        "_batch",
        "_batch_began",
        "_batch_link",
        "_batch_unit_s",
        "_running",
        "_stopping",
        "_stray",
        "_turn",
    )

    def __init__(self, system: System, config: WorkerConfig, pid: int) -> None:
        super().__init__(system, config, pid)
        #: what each thread runs; there is one thread, unless it is concurrent
        self._running: dict[int, _Task] = {}
        #: the tiny tasks that run one after the other in the main thread
        self._batch: list[Request] = []
        self._batch_link: Link | None = None
        self._batch_began = self._batch_unit_s = 0.0
        #: changes when the batch that runs is cut short: its end is then another
        self._turn = 0
        self._stopping = False
        #: what it began though its broker had given it up; that may be once more than wanted
        self._stray: set[int] = set()

    # ---- what the side thread asks -------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """Whether a task runs."""
        return bool(self._batch or self._running)

    def running_now(self) -> dict[int, str]:
        """Id and task of what runs and is not answered."""
        running = {task.request[0]: task.profile.name for task in self._running.values()}
        if self._batch and self._batch_link is not None:
            (request_id, task, _), names = self._batch[0], self._batch_link.queue.names
            running[request_id] = names[task]
        return running

    def interrupt(self, request_id: int) -> bool:
        """Have a running task end, if it listens; False when this request does not run."""
        for thread, task in self._running.items():
            if task.request[0] == request_id:
                # every third task does not listen
                if request_id % 3:
                    self.later(INTERRUPT_S, self._end_task, thread, request_id, True)
                return True
        return bool(self._batch) and self._batch[0][0] == request_id

    # ---- running -------------------------------------------------------------------------------

    def run_waiting(self, link: Link) -> None:
        """Begin what can begin now; read on when nothing is left."""
        waiting, replies, threads = link.queue.waiting, link.replies, self.config.concurrency
        if self._stopping:
            self._stop_when_idle()
            return
        while waiting and len(self._running) < threads and not self._batch and link is self.link:
            number = waiting[0][1]
            profile = link.profiles[number]
            if replies.frames and replies.due(number, self.world.now):
                self.flush(link)
                continue
            if profile.tiny and profile.idempotent and not self._running:
                self._begin_batch(link, number, profile)
            elif not self._begin(link, waiting.popleft(), profile):
                break
        if not self._batch and replies.frames:
            self.flush(link)
        self.read_on()

    def read_on(self) -> None:
        """Read the present connection when the main thread is free to."""
        link, is_alone = self.link, self.config.concurrency == 1
        if is_alone and not self.is_busy:
            self.slot.running.clear()
        if link is not None:
            link.end.reading = not is_alone or not self.is_busy
            if link.end.reading:
                link.end.resume()

    def _begin_batch(self, link: Link, number: int, profile: Profile) -> None:
        waiting, batch = link.queue.waiting, self._batch
        while waiting and waiting[0][1] == number and len(batch) < BATCH_MAX:
            batch.append(waiting.popleft())
        world = self.world
        self._batch_link = link
        self._batch_unit_s = profile.service_s * self.slowness * (0.5 + world.random.random())
        self._batch_began = world.now
        self._turn += 1
        self.later(self._batch_unit_s * len(batch), self._end_batch, self._turn)

    def _end_batch(self, turn: int) -> None:
        link = self._batch_link
        if turn == self._turn and link is not None:
            self._finish(link, len(self._batch))
            self.slot.running.pop(0, None)
            if link is self.link:
                self.run_waiting(link)
                return
            self.flush(link)
            self.read_on()
            if self.link is not None or self._stopping:
                # what came over a newer connection meanwhile waits for this thread
                self.run_waiting(self.link or link)

    def _finish(self, link: Link, count: int) -> None:
        """The first ones of the batch are done."""
        add, unit_s, now = link.replies.add, self._batch_unit_s, self.world.now
        for request_id, number, body in self._batch[:count]:
            if self.is_sour:
                self.books.soured.add(request_id)
                add(request_id, number, int(Status.TASK_ERROR), _FAILED, unit_s, now)
            else:
                add(request_id, number, 0, body, unit_s, now)
        del self._batch[:count]

    def catch_up(self) -> None:
        """See how far the batch has come: what has not begun waits again."""
        link = self._batch_link
        if not self._batch or link is None:
            return
        now, unit_s = self.world.now, self._batch_unit_s
        done = min(len(self._batch) - 1, int((now - self._batch_began) / unit_s))
        self._finish(link, done)
        self._batch_began += done * unit_s
        link.queue.waiting.extendleft(reversed(self._batch[1:]))
        del self._batch[1:]
        self._turn += 1
        self.later(max(0.0, self._batch_began + unit_s - now), self._end_batch, self._turn)
        self.slot.running[0] = self._batch[0][0]

    def _begin(self, link: Link, request: Request, profile: Profile) -> bool:
        """One request begins in a free thread; False when it may not, by its lease."""
        thread = 0
        while thread in self._running:
            thread += 1
        world, request_id = self.world, request[0]
        self.slot.running[thread] = request_id
        if not profile.idempotent:
            self.slot.note_start(request_id, world.now)
            if not self.system.shared.holds(self.slot, link.lease) or link.end.has_ended:
                self.slot.take_back_start(request_id)
                del self.slot.running[thread]
                return False
        if not self.system.shared.holds(self.slot, link.lease):
            self._stray.add(request_id)
        self.books.begun(request_id, profile, self.name)
        if world.tracing:
            sequence = request_id & 0xFFFFFFFF
            world.say(f"{self.name} begins {profile.name} {request_id >> 32}:{sequence}")
        self._running[thread] = _Task(link, request, profile, world.now)
        deed = profile.deed
        if deed is Deed.KILL or (deed is Deed.FLAKY and self.books.first_time(request_id)):
            self.later(profile.service_s * world.random.random(), self.die, "signal 11 (SIGSEGV)")
        elif deed is not Deed.HANG:
            seconds = profile.service_s * self.slowness * (0.25 + 1.5 * world.random.random())
            self.later(seconds, self._end_task, thread, request_id)
        return True

    def _end_task(self, thread: int, request_id: int, stopped: bool = False) -> None:
        task = self._running.get(thread)
        if task is None or task.request[0] != request_id:
            return
        del self._running[thread]
        link, (_, number, body), profile, began = task
        now = self.world.now
        self.books.ended(request_id, profile)
        status = 0
        if stopped:
            status, body = int(Status.CANCELLED), _STOPPED
        elif self.is_sour or profile.deed is Deed.FAIL:
            if self.is_sour:
                self.books.soured.add(request_id)
            status, body = int(Status.TASK_ERROR), _FAILED
        link.replies.add(request_id, number, status, body, now - began, now)
        if self.config.concurrency > 1:
            self.flush(link)
            self.slot.running.pop(thread, None)
        if link is self.link:
            self.run_waiting(link)
            return
        self.flush(link)
        self.read_on()
        if self.link is not None or self._stopping:
            self.run_waiting(self.link or link)

    # ---- what happens to it --------------------------------------------------------------------

    def stop(self) -> None:
        """Finish what runs, begin nothing more, and end."""
        self._stopping = True
        self.catch_up()
        if self.link is not None:
            self.link.queue.waiting.clear()
        self._stop_when_idle()

    def _stop_when_idle(self) -> None:
        if self.is_busy:
            return
        if self.link is not None and self.link.replies.frames:
            self.flush(self.link)
        self.slot.running.clear()
        self.die("code 0")

    def recover(self) -> None:
        """It is as fast and as good as ever again."""
        self.slowness = 1.0
        self.is_sour = False

    def die(self, cause: str, reason: str = "") -> None:
        """The process ends now; what it ran stays written in its slot.

        ``reason`` is why somebody wanted that.
        """
        if not self.alive:
            return
        self.catch_up()
        self.alive = False
        running = [task.request[0] for task in self._running.values()]
        running += [request[0] for request in self._batch]
        if self.world.tracing:
            self.world.say(f"{self.name} (pid {self.pid}) dies: {cause}, running {running}")
        self.books.lose_sight(running, self.pid)
        counted = [each for each in running if each not in self._stray]
        # the broker wanted it dead because of one request: what ran beside that is innocent
        self.books.died(counted, self.name, self.pid, is_charged=not reason)
        self.close_all()
        self.system.supervisor.child_ended(self, cause, reason)
