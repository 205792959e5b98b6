"""``lb up --record``: a broker that writes down what arrives and what it takes.

The records gather in memory and a thread writes them, so the broker never waits for the disk.  A
disk that is full, or too slow, ends the recording or costs records, with a line in the log; it
neither stops the broker nor delays a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import msgspec

from lbcore.core.errors import LBError
from lbcore.core.recording import (
    FORMAT,
    Header,
    Record,
    RecordedWorker,
    TaskFigures,
    present_figures,
    recorded_workers,
    start_recording,
)
from lbcore.core.topology import Topology

from .broker_process import BrokerServer, run_broker

if TYPE_CHECKING:
    import socket

    from lbcore.core.ledger import Ledger

    from .shared import SharedMemory

#: how often what has gathered is written
WRITE_S: Final = 0.2
#: how often the figures of the workers are written
FIGURES_S: Final = 0.5
#: records that wait to be written; a disk that cannot follow costs those beyond
WAITING_MAX: Final = 500_000
#: how many are encoded at once: meanwhile the broker cannot run
_BATCH: Final = 2000
#: far longer than the figures of a thousand workers
_LINE_BYTES_MAX: Final = 1 << 20
#: a broker that ends waits so long for the last of them
_CLOSE_MAX_S: Final = 5.0

_encode = msgspec.json.Encoder().encode


class RecordError(LBError):
    """A recording cannot be begun; the message says why."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """Where to, and the moment (monotonic) that all its times count from."""

    path: str
    began: float


def begin_recording(path: str) -> RecordPlan:
    """Make the file, which must not be there.  Raises ``RecordError``."""
    whole = os.path.abspath(path)
    try:
        os.close(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        raise RecordError(f"--record {path}: the file is there already; name another") from None
    except OSError as error:
        raise RecordError(f"--record {path}: {error.strerror}") from None
    return RecordPlan(whole, monotonic())


def discard_recording(plan: RecordPlan) -> None:
    """Nothing was started: a file with nothing in it is no recording."""
    with contextlib.suppress(OSError):
        if os.path.getsize(plan.path) == 0:
            os.unlink(plan.path)


class Recorder:
    """The file and its thread; a ``Sink``."""

    def __init__(self, file: BinaryIO, warn: Any) -> None:
        """``warn`` takes one line for people; it may be called in the thread."""
        self._file = file
        self._warn = warn
        self._waiting: deque[Any] = deque()
        self._lost = 0
        self._is_over = False
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="recorder", daemon=True)
        self._thread.start()

    def take(self, record: Record) -> None:
        """Have a record written; or count it as lost."""
        if len(self._waiting) < WAITING_MAX and not self._is_over:
            self._waiting.append(record)
        else:
            self._lost += 1

    def add(self, line: Any) -> None:
        """Have another line written."""
        if not self._is_over:
            self._waiting.append(line)

    def take_lost(self) -> int:
        """How many records were lost since this was asked last."""
        lost, self._lost = self._lost, 0
        return lost

    def close(self) -> None:
        """Write what waits, and end."""
        self._ends.set()
        self._thread.join(_CLOSE_MAX_S)

    def _write_on(self) -> None:
        try:
            with self._file:
                while not self._ends.wait(WRITE_S):
                    self._write()
                self._write()
        except OSError as error:
            self._is_over = True
            self._waiting.clear()
            self._warn(f"the recording ends here: {error.strerror or error}")

    def _write(self) -> None:
        while self._waiting:
            count = min(_BATCH, len(self._waiting))
            lines = [_line(self._waiting.popleft()) for _ in range(count)]
            lines.append(b"")
            data = b"\n".join(lines)
            # a disk that is nearly full may take a part
            while data:
                data = data[self._file.write(data) :]
        self._file.flush()


def _open_at_end(path: str) -> BinaryIO:
    """The file, behind its last whole line: an earlier broker may have died in the next one."""
    # not buffered: what was written is there, also when this process is killed
    file = open(path, "r+b", buffering=0)  # noqa: SIM115
    end = file.seek(0, os.SEEK_END)
    begin = file.seek(max(0, end - _LINE_BYTES_MAX))
    tail = file.read(_LINE_BYTES_MAX)
    file.truncate(begin + tail.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def _line(waiting: Any) -> bytes:
    if type(waiting) is not Record:
        return _encode(waiting)
    arrived_s, task, worker, waiting_s, service_s, status, client = waiting
    # more digits are noise
    times = round(waiting_s, 6), round(service_s, 7)
    return _encode((round(arrived_s, 6), task, worker, *times, status, client))


class RecordingServer(BrokerServer):
    """A broker that writes down what it does."""

    def __init__(self, plan: RecordPlan, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._plan = plan
        self._recorder: Recorder | None = None

    async def run(self) -> int:
        """Serve, and record."""
        ledger, warn = self.broker.ledger, self.logger.warning
        try:
            file = _open_at_end(self._plan.path)
        except OSError as error:
            warn("--record {}: {}; nothing is recorded", self._plan.path, error.strerror)
            return await super().run()
        recorder = Recorder(file, partial(warn, "{}"))
        if file.tell() == 0:
            recorder.add(_header(ledger, self.topology, self._plan.began))
        start_recording(ledger, recorder, self._plan.began, monotonic)
        figures = asyncio.create_task(self._tell_figures(recorder))
        try:
            return await super().run()
        finally:
            figures.cancel()
            recorder.add(_Watch(ledger, self._plan.began).look(self.topology, recorder))
            recorder.close()

    async def _tell_figures(self, recorder: Recorder) -> None:
        watch = _Watch(self.broker.ledger, self._plan.began)
        while True:
            await asyncio.sleep(FIGURES_S)
            recorder.add(watch.look(self.topology, recorder))


class _Watch:
    """Looks at a broker now and then, and says of what seldom changes only what has changed."""

    def __init__(self, ledger: Ledger, began: float) -> None:
        self._ledger = ledger
        self._began = began
        self._tasks: tuple[TaskFigures, ...] = ()
        self._policy = ""
        self._workers: tuple[RecordedWorker, ...] = ()

    def look(self, topology: Topology, recorder: Recorder) -> Any:
        """The figures of this moment."""
        figures = present_figures(
            self._ledger, round(monotonic() - self._began, 6), lost=recorder.take_lost()
        )
        before, self._tasks = self._tasks, figures.tasks
        news = tuple(each for each in figures.tasks if each not in before)
        changes: dict[str, Any] = {"tasks": news}
        if self._policy != (policy := topology.policy.label):
            self._policy = changes["policy"] = policy
        if self._workers != (workers := recorded_workers(self._ledger)):
            self._workers = changes["changed"] = workers
        return msgspec.structs.replace(figures, **changes)


def _header(ledger: Ledger, topology: Topology, began: float) -> Header:
    now = datetime.now(UTC).timestamp() - (monotonic() - began)
    return Header(
        lb_recording=FORMAT,
        name=topology.name,
        policy=topology.policy.label,
        workers=recorded_workers(ledger),
        started=datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        began=began,
    )


def run_recorded_broker(
    plan: RecordPlan,
    topology: Topology,
    listener: socket.socket,
    leash: socket.socket,
    shared: SharedMemory,
    secret: bytes,
) -> int:
    """As ``run_broker``, with a recording."""
    make = partial(RecordingServer, plan)
    return run_broker(topology, listener, leash, shared, secret, make)
