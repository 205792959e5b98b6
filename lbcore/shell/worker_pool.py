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

if TYPE_CHECKING:
    from collections import deque

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
        next_token = self._tokens.get
        while True:
            next_token()
            with self._changed:
                self._busy += 1
            waiting = server.queue.waiting
            try:
                request = waiting.popleft()
            except IndexError:
                self._done()  # it was taken back
                continue
            server.running(request[0])
            task = server.numbered.get(request[1])
            if task is not None and task.is_async:
                finished = asyncio.run_coroutine_threadsafe(
                    self._run_coroutine(waiting, request), self._event_loop()
                )
                # the slot stays taken: the loop shares them with the threads
                finished.result()
            else:
                self._run(waiting, request)
            self._done()

    def _done(self) -> None:
        with self._changed:
            self._busy -= 1
            if not self._busy:
                self._server.running(0)
                self._changed.notify_all()

    def _run(self, waiting: deque[Request], request: Request) -> None:
        server = self._server
        request_id, number, body = request
        status, begin, cpu_begin = 0, perf_counter(), thread_time()
        with logs.request_context(request_id):
            try:
                task = server.numbered[number]
                payload = server.encode(task.run(body), number)
            except BaseException as error:
                status, payload = server.failure(number, error)
        cpu_s = thread_time() - cpu_begin
        server.answer(waiting, request, status, payload, perf_counter() - begin, cpu_s)

    async def _run_coroutine(self, waiting: deque[Request], request: Request) -> None:
        server = self._server
        request_id, number, body = request
        status, begin = 0, perf_counter()
        with logs.request_context(request_id):
            try:
                task = server.numbered[number]
                value: Any = await task.run_async(body)
                payload = server.encode(value, number)
            except BaseException as error:
                status, payload = server.failure(number, error)
        server.answer(waiting, request, status, payload, perf_counter() - begin, 0.0)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._changed:
            if self._loop is None:
                self._loop = uvloop.new_event_loop()
                thread = threading.Thread(
                    target=self._loop.run_forever, name="coroutines", daemon=True
                )
                thread.start()
            return self._loop
