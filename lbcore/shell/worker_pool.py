"""Tasks of a worker with ``concurrency`` above 1: threads for functions, one loop for coroutines.

The main thread hands requests over; each is answered by the thread that ran it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

import uvloop

from lbcore.core.worker import Request

from . import logs
from .cancellation import ThreadInterrupt
from .shared import RUNNING_MAX
from .tasks import Task
from .worker_end import ABANDONED
from .worker_link import Link

if TYPE_CHECKING:
    from .worker_process import WorkerServer


class _Place:
    """One thread, and what it runs."""

    def __init__(self, server: WorkerServer, index: int) -> None:
        self._running = server.slot.running
        self._index = index
        self.link: Link | None = None
        self.request: Request | None = None
        self.interrupt = ThreadInterrupt()
        self.coroutine: asyncio.Task[bytes | BaseException] | None = None
        self.cpu_s = 0.0

    def take(self, link: Link, request: Request) -> None:
        """From now on this runs here."""
        self.link, self.request = link, request
        if self._index < RUNNING_MAX:
            self._running[self._index] = request[0]

    def runs(self, request_id: int) -> bool:
        """Whether this request runs here."""
        request = self.request
        return request is not None and request[0] == request_id

    def end(self, request_id: int) -> bool:
        """Have it end; False when it has to be tried again."""
        coroutine = self.coroutine
        if coroutine is None:
            return self.interrupt.interrupt(request_id)
        coroutine.get_loop().call_soon_threadsafe(coroutine.cancel)
        return True

    def leave(self) -> None:
        """Its answer has left."""
        self.request = None
        if self._index < RUNNING_MAX:
            self._running[self._index] = 0


class Pool:
    """``size`` threads, and an event loop that runs up to ``size`` coroutines."""

    def __init__(self, server: WorkerServer, size: int) -> None:
        self._server = server
        self._size = size
        #: one token for each request handed over; the request itself stays in ``queue.waiting``,
        #: where it can still be taken back
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._places: list[_Place] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        #: ids of running requests that are to end and were not told yet
        self._interrupts: set[int] = set()
        self._busy = 0
        self._changed = threading.Condition()

    def submit_waiting(self, link: Link) -> None:
        """Let the threads know what waits."""
        with self._changed:
            if not self._places:
                self._start()
        for _ in range(len(link.queue.waiting) - self._tokens.qsize()):
            self._tokens.put(True)

    def wait_idle(self) -> None:
        """Wait until everything handed over is answered."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def is_busy(self) -> bool:
        """Whether any thread runs something."""
        return bool(self._busy)

    def running_now(self) -> dict[int, str]:
        """Id and task of what runs and is not answered; who asks holds the server's ``sending``."""
        found = {}
        for place in self._places:
            request, link = place.request, place.link
            if request is not None and link is not None:
                task = link.numbered.get(request[1])
                if task is not None:
                    found[request[0]] = task.name
        return found

    def interrupt(self, request_id: int) -> bool:
        """Have a running task end; False when this request does not run here."""
        self._interrupts.add(request_id)
        self.repeat_interrupts()
        return any(place.runs(request_id) for place in self._places)

    def repeat_interrupts(self) -> bool:
        """Try again where a task could not be interrupted; False when there is none such."""
        for request_id in list(self._interrupts):
            place = next((each for each in self._places if each.runs(request_id)), None)
            if place is None or place.end(request_id):
                self._interrupts.discard(request_id)
        return bool(self._interrupts)

    def _start(self) -> None:
        self._places = [_Place(self._server, index) for index in range(self._size)]
        for index, place in enumerate(self._places, 1):
            threading.Thread(
                target=self._work, args=(place,), name=f"task-{index}", daemon=True
            ).start()

    def _work(self, place: _Place) -> None:
        next_token = self._tokens.get
        while True:
            next_token()
            with self._changed:
                self._busy += 1
            self._run_next(place)
            with self._changed:
                self._busy -= 1
                if not self._busy:
                    self._changed.notify_all()

    def _run_next(self, place: _Place) -> None:
        server = self._server
        link = server.link
        if link is None:
            return
        try:
            request = link.queue.waiting.popleft()
        except IndexError:
            return  # it was taken back
        place.take(link, request)
        begin, place.cpu_s = perf_counter(), 0.0
        status, payload = 0, b""
        task = link.numbered.get(request[1])
        try:
            if task is not None and not task.idempotent:
                server.begin_once(link, request[0])
            if task is not None and task.is_async:
                payload = self._run_coroutine(place, link, request, task)
            else:
                payload = place.interrupt.run(request[0], self._call(place, link, request))
        except BaseException as error:
            status, payload = server.failure(link, request[0], request[1], error)
        self._answer(place, link, request, status, payload, perf_counter() - begin)

    def _call(self, place: _Place, link: Link, request: Request) -> Callable[[], bytes]:
        request_id, number, body = request

        def call() -> bytes:
            begin = thread_time()
            with logs.request_context(request_id):
                try:
                    value = link.numbered[number].run(body)
                    return self._server.encode(link, value, number)
                finally:
                    place.cpu_s = thread_time() - begin

        return call

    def _run_coroutine(self, place: _Place, link: Link, request: Request, task: Task) -> bytes:
        request_id, number, body = request

        async def run() -> bytes | BaseException:
            place.coroutine = asyncio.current_task()
            with logs.request_context(request_id):
                # nothing gets out: a SystemExit would end the loop
                try:
                    return self._server.encode(link, await task.run_async(body), number)
                except BaseException as error:
                    return error
                finally:
                    place.coroutine = None

        finished = asyncio.run_coroutine_threadsafe(run(), self._event_loop())
        # the place stays taken: the loop shares them with the threads
        result = finished.result()
        if isinstance(result, BaseException):
            raise result
        return result

    def _answer(
        self,
        place: _Place,
        link: Link,
        request: Request,
        status: int,
        payload: bytes,
        service_s: float,
    ) -> None:
        server, cpu_share = self._server, -1.0
        if place.cpu_s > 0.0 and service_s > 0.0:
            cpu_share = place.cpu_s / service_s
        capture = server.capture
        if capture is not None and capture.has_partial:
            capture.finish_lines()
        with server.sending:
            if status != ABANDONED:
                link.replies.add(request[0], request[1], status, payload, service_s, perf_counter())
                server.send(link, cpu_share)
            place.leave()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._changed:
            if self._loop is None:
                self._loop = uvloop.new_event_loop()
                thread = threading.Thread(
                    target=self._loop.run_forever, name="coroutines", daemon=True
                )
                thread.start()
            return self._loop
