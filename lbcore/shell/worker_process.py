"""A worker process: runs tasks, one after the other in its main thread, and says how it is doing.

The main thread reads requests and runs them there, so that C code, signals and limits behave as in
any program.  A side thread (``worker_side``) accepts connections, reports CPU figures, gives queued
requests back when asked, and sends finished answers that a long task would hold up.  With
``concurrency`` above 1 the main thread only reads, and threads run the tasks (``worker_pool``).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from time import perf_counter, thread_time
from typing import Any, Final

import msgspec
import uvloop
from loguru import logger

from lbcore.core.errors import LBError, ProtocolError, Status, TaskError, TooLarge, UnknownTask
from lbcore.core.topology import Topology, WorkerConfig
from lbcore.core.worker import FLUSH_S, ReplyBuffer, Request, WorkerQueue, error_payload

from . import logs
from .state import base_folder, log_folder
from .tasks import (
    ArgumentError,
    Task,
    TaskImportError,
    describe_failure,
    encode_result,
    load_tasks,
)
from .worker_pool import Pool
from .worker_side import SideThread

READ_BYTES: Final = 1 << 18
#: at most one failed request in this time is told of in the log
LOG_FAILURES_S: Final = 0.05
#: exit code of a worker whose tasks cannot be imported
EXIT_IMPORT: Final = 2

#: the result of most tasks that exist for their effect
_NONE: Final = encode_result(None)


class WorkerServer:
    """One worker: its tasks, what waits, and what is finished."""

    def __init__(
        self,
        topology: Topology,
        config: WorkerConfig,
        tasks: dict[str, Task],
        current: memoryview,
    ) -> None:
        self.config = config
        self.frame_bytes_max = topology.limits.frame_bytes
        self.tasks = tasks
        self.queue = WorkerQueue(self.frame_bytes_max)
        self.replies = ReplyBuffer(0)
        #: task number -> task, as the connected broker numbers them
        self.numbered: dict[int, Task] = {}
        #: the same: what runs one request of it in this thread
        self.runners: dict[int, Callable[[bytes], Any]] = {}
        #: connections that the side thread accepted, for the main thread, each with the number that
        #: its broker gave this worker and what to greet it with; None means stop
        self.connections: SimpleQueue[tuple[socket.socket, int, bytes] | None] = SimpleQueue()
        #: held while the main thread reads: who holds it may read the connection
        self.reading = threading.Lock()
        self.stopping = False
        self.connection: socket.socket | None = None
        self._sending = threading.Lock()
        #: what is read goes here first: to ask for so many bytes anew each time costs 15 µs
        self._room = memoryview(bytearray(READ_BYTES))
        self._current = current.cast("Q")
        self._pool = Pool(self, config.concurrency) if config.concurrency > 1 else None
        self._runner: asyncio.Runner | None = None
        #: failed requests are told of from then on, and how many were not
        self._log_failures_at = 0.0
        self._unlogged = 0
        self._capture: logs.OutputCapture | None = None

    def serve(self, capture: logs.OutputCapture | None = None) -> None:
        """Serve one broker connection after the other until told to stop."""
        self._capture = capture
        while not self.stopping:
            accepted = self.connections.get()
            if accepted is None:
                break
            connection, number, welcome = accepted
            with self._sending:
                self.connection = connection
                self.queue.connected(self.frame_bytes_max)
                self.replies.frames.clear()
                self.replies.worker = number
            try:
                connection.sendall(welcome)
                self._serve_connection(connection)
            except (OSError, ProtocolError) as error:
                if not self.stopping:
                    logger.warning("broker connection: {}", error)
            finally:
                self.connection = None
                connection.close()

    def stop(self) -> None:
        """Finish what runs and return from ``serve``; callable from any thread or signal
        handler."""
        self.stopping = True
        self.connections.put(None)
        connection = self.connection
        if connection is not None:
            try:
                connection.shutdown(socket.SHUT_RD)
            except OSError:
                return  # it broke by itself

    def _serve_connection(self, connection: socket.socket) -> None:
        pool = self._pool
        while not self.stopping:
            with self.reading:
                count = connection.recv_into(self._room)
                if not count:
                    break
                self.feed(bytes(self._room[:count]))
            if pool is not None:
                pool.submit_waiting()
            else:
                self._run_waiting()
        if pool is not None and self.stopping:
            pool.wait_idle()

    def feed(self, data: bytes) -> None:
        """Take in bytes of the request connection; the caller holds ``reading``."""
        if self.queue.feed(data):
            by_name = dict(self.tasks)
            self.numbered = {
                number: by_name[name]
                for number, name in self.queue.names.items()
                if name in by_name
            }
            self.replies.prompt = frozenset(
                number for number, task in self.numbered.items() if not task.idempotent
            )
            self.replies.tiny.clear()
            self.runners = {
                number: partial(self._run_async, task) if task.is_async else task.run
                for number, task in self.numbered.items()
            }

    # ---- running, in the main thread -----------------------------------------------------------

    def _run_waiting(self) -> None:
        """Run what waits, in order.  The hot path: see the figures in bench/ before changing it."""
        take, current, set_request = self.queue.waiting.popleft, self._current, logs.request_id.set
        replies, runners = self.replies, self.runners
        frames, add, tiny = replies.frames, replies.add, replies.tiny
        begin, cpu_begin = perf_counter(), thread_time()
        segment = begin
        while not self.stopping:
            try:
                request_id, number, body = take()
            except IndexError:
                break
            if frames and (number not in tiny or begin - replies.since > FLUSH_S):
                self.flush(thread_time() - cpu_begin, begin - segment)
                segment = begin = perf_counter()
                cpu_begin = thread_time()
            current[0] = request_id
            set_request(request_id)
            status = 0
            try:
                value = runners[number](body)
                payload = _NONE if value is None else self.encode(value, number)
            except BaseException as error:
                status, payload = self.failure(number, error)
            end = perf_counter()
            add(request_id, number, status, payload, end - begin, end)
            begin = end
        set_request(0)
        if frames:
            self.flush(thread_time() - cpu_begin, begin - segment)
        # not before its answer has left: who dies in between has run it
        current[0] = 0

    def is_busy(self) -> bool:
        """Whether a task runs now."""
        return bool(self._current[0])

    def running(self, request_id: int) -> None:
        """Leave word of a running request (0: none) for those who find this process dead."""
        self._current[0] = request_id

    def encode(self, value: Any, number: int) -> bytes:
        """The result of a task as it is sent.  Raises ``TypeError`` or ``TooLarge``."""
        name = self.numbered[number].name
        payload = encode_result(value, name)
        if len(payload) > self.frame_bytes_max:
            raise TooLarge(
                f"task `{name}` returned {len(payload)} bytes; the limit is {self.frame_bytes_max}"
            )
        return payload

    def _run_async(self, task: Task, body: bytes) -> Any:
        """Run a coroutine in the main thread, on a loop that lives as long as the process."""
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        return self._runner.run(task.run_async(body))

    def failure(self, number: int, error: BaseException) -> tuple[int, bytes]:
        """The status and body of the answer to a request that could not be done."""
        task = self.numbered.get(number)
        if task is None:
            unknown = UnknownTask(f"{self.config.name} does not have task number {number}")
            return int(Status.UNKNOWN_TASK), error_payload(unknown)
        if isinstance(error, ArgumentError | TooLarge):
            return int(error.status or 0), error_payload(error)
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

    # ---- answers -------------------------------------------------------------------------------

    def answer(
        self,
        waiting: deque[Request],
        request: Request,
        status: int,
        payload: bytes,
        service_s: float,
        cpu_s: float,
    ) -> None:
        """Send the answer to a request that a thread took from ``waiting``.

        When another broker has connected since, it is dropped: ids begin anew with each broker.
        """
        with self._sending:
            if waiting is not self.queue.waiting:
                return
            self.replies.add(request[0], request[1], status, payload, service_s, perf_counter())
        self.flush(cpu_s, service_s)

    def flush(self, cpu_s: float = -1.0, wall_s: float = 0.0) -> None:
        """Send the finished answers; ``cpu_s`` of ``wall_s`` seconds were computing."""
        capture = self._capture
        if capture is not None and capture.has_partial:
            capture.finish_lines()
        with self._sending:
            connection = self.connection
            if connection is None:
                self.replies.frames.clear()
                return
            data = self.replies.take(cpu_s / wall_s if cpu_s >= 0.0 and wall_s > 0.0 else -1.0)
            if data:
                try:
                    connection.sendall(data)
                except OSError:
                    # the broker is gone; it will ask somebody for these requests again
                    self.replies.frames.clear()

    def flush_overdue(self, age_s: float) -> None:
        """Send answers that have waited that long: the main thread is in a task that takes
        longer."""
        if self.replies.frames and perf_counter() - self.replies.since > age_s:
            self.flush()


def run_worker(
    topology: Topology,
    worker: WorkerConfig,
    listener: socket.socket,
    leash: socket.socket,
    current: memoryview,
) -> int:
    """The worker process from its first to its last line; returns the exit code."""
    logs.setup_logging(topology.logs, log_folder(topology), worker.name)
    if worker.concurrency == 1:
        slot = current.cast("Q")
        capture = logs.capture_output(logger, lambda: int(slot[0]))
    else:
        capture = logs.capture_output(logger)
    try:
        tasks = load_tasks(topology.tasks, base_folder(topology))
    except LBError as error:
        detail = error.detail if isinstance(error, TaskImportError) else ""
        logger.bind(detail=detail).error("{}", error)
        failed = {"event": "failed", "error": str(error), "detail": detail, "code": EXIT_IMPORT}
        leash.sendall(msgspec.json.encode(failed) + b"\n")
        return EXIT_IMPORT
    by_any_name = dict(tasks)
    for task in tasks.values():
        by_any_name.update(dict.fromkeys(task.aliases, task))
    server = WorkerServer(topology, worker, by_any_name, current)
    greeting = {
        "name": worker.name,
        "pid": os.getpid(),
        "tasks": [task.describe() for task in tasks.values()],
    }
    side = SideThread(server, greeting, listener, leash, worker.cpus)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    side.start()
    logger.info("pid {}, {} tasks, listening on {}", os.getpid(), len(tasks), worker.address)
    leash.sendall(b'{"event":"ready"}\n')
    server.serve(capture)
    logger.info("stopped")
    return 0
