"""Tasks of a worker with ``concurrency`` above 1: threads for functions, one loop for coroutines.

The main thread hands requests over; each is answered by the thread that ran it.
"""

from __future__ import annotations

import asyncio
import threading
from queue import SimpleQueue
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any

import uvloop

from . import logs
from .tasks import encode_result

if TYPE_CHECKING:
    from lbcore.core.worker import Request

    from .worker_process import WorkerServer


class Pool:
    """``size`` threads, and an event loop that runs up to ``size`` coroutines."""

    def __init__(self, server: WorkerServer, size: int) -> None:
        self._server = server
        self._size = size
        #: one token for each request handed over; the request itself stays in ``queue.waiting``,
        #: where it can still be taken back
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._handed = 0
        self._threads: list[threading.Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._permits: asyncio.Semaphore | None = None
        self._busy = 0
        self._changed = threading.Condition()

    def submit_waiting(self) -> None:
        """Let the threads know what waits."""
        if not self._threads:
            self._start()
        for _ in range(len(self._server.queue.waiting) - self._tokens.qsize()):
            self._tokens.put(True)

    def wait_idle(self) -> None:
        """Wait until everything handed over is answered."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def _start(self) -> None:
        for index in range(self._size):
            thread = threading.Thread(target=self._work, name=f"task-{index + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        server = self._server
        take, next_token = server.queue.waiting.popleft, self._tokens.get
        while True:
            next_token()
            with self._changed:
                self._busy += 1
            try:
                request = take()
            except IndexError:
                self._done()  # it was taken back
                continue
            task = server.numbered.get(request[1])
            if task is not None and task.is_async:
                finished = asyncio.run_coroutine_threadsafe(
                    self._run_coroutine(request), self._event_loop()
                )
                # the slot stays taken: the loop shares them with the threads
                finished.result()
            else:
                self._run(request)
            self._done()

    def _done(self) -> None:
        with self._changed:
            self._busy -= 1
            if not self._busy:
                self._changed.notify_all()

    def _run(self, request: Request) -> None:
        server = self._server
        request_id, number, body = request
        status, begin, cpu_begin = 0, perf_counter(), thread_time()
        with logs.request_context(request_id):
            try:
                task = server.numbered[number]
                payload = encode_result(task.run(body), task.name)
            except BaseException as error:
                status, payload = server.failure(number, error)
        self._answer(request, status, payload, begin, thread_time() - cpu_begin)

    async def _run_coroutine(self, request: Request) -> None:
        server = self._server
        request_id, number, body = request
        status, begin = 0, perf_counter()
        with logs.request_context(request_id):
            try:
                task = server.numbered[number]
                value: Any = await task.run_async(body)
                payload = encode_result(value, task.name)
            except BaseException as error:
                status, payload = server.failure(number, error)
        self._answer(request, status, payload, begin, 0.0)

    def _answer(
        self, request: Request, status: int, payload: bytes, begin: float, cpu_s: float
    ) -> None:
        server, end = self._server, perf_counter()
        server.replies.add(request[0], request[1], status, payload, end - begin, end)
        server.flush(cpu_s, end - begin)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._changed:
            if self._loop is None:
                self._loop = uvloop.new_event_loop()
                thread = threading.Thread(
                    target=self._loop.run_forever, name="coroutines", daemon=True
                )
                thread.start()
            return self._loop
