"""A worker process: runs tasks, one after the other in its main thread, and says how it is doing.

The main thread reads requests and runs them there, so that C code, signals and limits behave as in
any program.  A side thread (``worker_side``) accepts connections, reports CPU figures, gives queued
requests back when asked, takes in cancellations, and sends finished answers that a long task would
hold up.  With ``concurrency`` above 1 the main thread only reads, and threads run the tasks
(``worker_pool``).  ``worker_end`` is what all of these share.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter, thread_time
from typing import Any, Final

import msgspec
import uvloop
from loguru import logger

from lbcore.core.errors import LBError, ProtocolError
from lbcore.core.topology import LogsConfig, Topology, WorkerConfig
from lbcore.core.worker import FLUSH_S

from . import logs
from .cancellation import MainThreadInterrupt
from .shared import SharedMemory, Slot
from .sources import distrust_fresh_bytecode
from .state import base_folder, log_folder
from .tasks import Task, TaskImportError, encode_result, load_tasks
from .worker_end import ABANDONED, WorkerEnd
from .worker_link import Link
from .worker_pool import Pool
from .worker_side import SideThread

READ_BYTES: Final = 1 << 18
#: exit code of a worker whose tasks cannot be imported
EXIT_IMPORT: Final = 2

#: the result of most tasks that exist for their effect
_NONE: Final = encode_result(None)


class WorkerServer(WorkerEnd):
    """The main thread of a worker: reads, runs, answers."""

    def __init__(
        self,
        topology: Topology,
        config: WorkerConfig,
        tasks: dict[str, Task],
        shared: SharedMemory,
        slot: Slot,
    ) -> None:
        super().__init__(topology, config, tasks, shared, slot)
        self._log_folder = log_folder(topology)
        #: what is read goes here first: to ask for so many bytes anew each time costs 15 µs
        self._room = memoryview(bytearray(READ_BYTES))
        self._current = slot.running
        self._pool = Pool(self, config.concurrency) if config.concurrency > 1 else None
        self._interrupt = MainThreadInterrupt(slot.running)
        self._runner: asyncio.Runner | None = None
        #: the coroutine that runs in the main thread, and its request
        self._coroutine: tuple[int, asyncio.Task[Any]] | None = None

    def change_settings(self, order: Mapping[str, Any]) -> None:
        """The supervisor says what holds from now on."""
        self.frame_bytes_max = int(order["frame_bytes"])
        settings = msgspec.convert(order["logs"], LogsConfig)
        logs.change_logging(settings, self._log_folder, self.config.name)

    def serve(self) -> None:
        """Serve one broker connection after the other until told to stop."""
        self._interrupt.install()
        while not self.stopping:
            link = self.links.get()
            if link is None:
                break
            try:
                self._serve_link(link)
            except (OSError, ProtocolError) as error:
                if not self.stopping and link is self.link:
                    logger.warning("broker connection: {}", error)
            finally:
                self.lose(link)

    def _serve_link(self, link: Link) -> None:
        pool = self._pool
        # another one may take its place at any time
        while not self.stopping and link is self.link:
            with self.reading:
                # the side thread may have read ahead; a pool was told of that
                if pool is not None or not link.queue.waiting:
                    count = link.connection.recv_into(self._room)
                    if not count or link is not self.link:
                        break
                    self.feed(link, bytes(self._room[:count]))
            if pool is not None:
                pool.submit_waiting(link)
            else:
                self._run_waiting(link)
        if pool is not None and self.stopping:
            pool.wait_idle()

    # ---- running, in the main thread -----------------------------------------------------------

    def _run_waiting(self, link: Link) -> None:
        """Run what waits, in order.  The hot path: see the figures in bench/ before changing it."""
        take, current, set_request = link.queue.waiting.popleft, self._current, logs.request_id.set
        replies, runners = link.replies, link.runners
        frames, add, tiny = replies.frames, replies.add, replies.tiny
        begin, cpu_begin = perf_counter(), thread_time()
        segment = begin
        while not self.stopping:
            try:
                link.running = request = take()
            except IndexError:
                break
            request_id, number, body = request
            if frames and (number not in tiny or begin - replies.since > FLUSH_S):
                self.flush(link, thread_time() - cpu_begin, begin - segment)
                segment = begin = perf_counter()
                cpu_begin = thread_time()
            current[0] = request_id
            set_request(request_id)
            status = 0
            try:
                value = runners[number](body)
                payload = _NONE if value is None else self.encode(link, value, number)
            except BaseException as error:
                status, payload = self.failure(link, request_id, number, error)
                if status == ABANDONED:
                    break
            end = perf_counter()
            add(request_id, number, status, payload, end - begin, end)
            begin = end
        set_request(0)
        if frames:
            self.flush(link, thread_time() - cpu_begin, begin - segment)
        # not before its answer has left: who dies in between has run it
        current[0] = 0
        link.running = None

    def runner(self, link: Link, task: Task) -> Callable[[bytes], Any]:
        """What runs a request of that task in the main thread."""
        run = partial(self._run_async, task) if task.is_async else task.run
        return run if task.idempotent else partial(self._run_once, link, run)

    def _run_once(self, link: Link, run: Callable[[bytes], Any], body: bytes) -> Any:
        """Run what must never run twice; raises ``Abandoned`` when another worker may have it."""
        self.begin_once(link, self._current[0])
        return run(body)

    def _run_async(self, task: Task, body: bytes) -> Any:
        """Run a coroutine in the main thread, on a loop that lives as long as the process."""
        if self._runner is None:
            self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        return self._runner.run(self._watched(task, body))

    async def _watched(self, task: Task, body: bytes) -> Any:
        current = asyncio.current_task()
        assert current is not None
        self._coroutine = (self._current[0], current)
        try:
            return await task.run_async(body)
        finally:
            self._coroutine = None

    def has_read_ahead(self, link: Link) -> None:
        """The side thread has read requests."""
        if self._pool is not None:
            self._pool.submit_waiting(link)

    def running_now(self, link: Link) -> dict[int, str]:
        """Id and task of what runs and is not answered; who asks holds ``sending``."""
        if self._pool is not None:
            return self._pool.running_now()
        request = link.running
        if request is None or self._current[0] != request[0]:
            return {}
        task = link.numbered.get(request[1])
        is_answered = link.replies.has_sent_last(request[0])
        return {} if task is None or is_answered else {request[0]: task.name}

    def is_busy(self) -> bool:
        """Whether a task runs now."""
        return self._pool.is_busy() if self._pool is not None else bool(self._current[0])

    def interrupt(self, request_id: int) -> bool:
        """Have a running task end; False when this request does not run."""
        if self._pool is not None:
            return self._pool.interrupt(request_id)
        if self._current[0] != request_id:
            return False
        self._interrupt.want(request_id)
        self.repeat_interrupts()
        return True

    def repeat_interrupts(self) -> bool:
        """Try again where a task could not be interrupted; False when there is none such."""
        if self._pool is not None:
            return self._pool.repeat_interrupts()
        wanted, coroutine = self._interrupt.wanted, self._coroutine
        if wanted and coroutine is not None and coroutine[0] == wanted:
            coroutine[1].get_loop().call_soon_threadsafe(self._cancel_coroutine, wanted)
        # a coroutine that computes is reached by the signal only, one that waits by the loop only
        return self._interrupt.repeat()

    def _cancel_coroutine(self, request_id: int) -> None:
        """In the main thread, between two steps of the coroutine."""
        coroutine = self._coroutine
        if coroutine is not None and coroutine[0] == request_id == self._interrupt.wanted:
            self._interrupt.want(0)
            coroutine[1].cancel()


def run_worker(
    topology: Topology,
    worker: WorkerConfig,
    listener: socket.socket,
    leash: socket.socket,
    shared: SharedMemory,
    slot: Slot,
    key: bytes,
) -> int:
    """The worker process from its first to its last line; returns the exit code.

    ``key`` is what its broker has to know.
    """
    logs.setup_logging(topology.logs, log_folder(topology), worker.name, patient=True)
    if worker.concurrency == 1:
        running = slot.running
        capture = logs.capture_output(logger, lambda: int(running[0]))
    else:
        capture = logs.capture_output(logger)
    distrust_fresh_bytecode(topology.tasks, base_folder(topology))
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
    server = WorkerServer(topology, worker, by_any_name, shared, slot)
    server.capture = capture
    greeting = {
        "name": worker.name,
        "pid": os.getpid(),
        "tasks": [task.describe() for task in tasks.values()],
    }
    side = SideThread(server, greeting, listener, leash, worker.cpus, key)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    side.start()
    logger.info("pid {}, {} tasks, listening on {}", os.getpid(), len(tasks), worker.address)
    leash.sendall(b'{"event":"ready"}\n')
    server.serve()
    logger.info("stopped")
    return 0
