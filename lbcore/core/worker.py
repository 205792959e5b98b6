"""A worker's bookkeeping: what waits, in which order it runs, when finished answers are sent.

Pure, like the broker: bytes in, requests and bytes out.  ``lbcore.shell.worker_process`` feeds it
and runs the tasks; a simulation can run the same class in virtual time.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import msgspec

from .errors import ProtocolError, RequestError
from .frames import (
    CONTROL_BYTES_MAX,
    CPU_SCALE,
    CPU_UNKNOWN,
    HEADER_BYTES,
    REPLY_SCAN,
    REQUEST_SCAN,
    FrameBuffer,
    Kind,
    decode_body,
)

#: a task that takes longer never has finished answers waiting for it
SLOW_S: Final = 0.00005
#: finished answers of tiny tasks are sent together, at the latest after this
FLUSH_S: Final = 0.0002

#: (id, task number, body) of a request
Request = tuple[int, int, bytes]

_REPLY = int(Kind.REPLY)
_REQUEST = int(Kind.REQUEST)
_TASKS = int(Kind.TASKS)
_UNMEASURED = CPU_UNKNOWN << 16
_pack = REPLY_SCAN.pack
_encode = msgspec.msgpack.Encoder().encode


def _buffer(frame_bytes_max: int) -> FrameBuffer:
    """A buffer for requests, and for a table of tasks, which may be larger than a small limit."""
    return FrameBuffer(max(frame_bytes_max, CONTROL_BYTES_MAX))


class WorkerQueue:
    """The requests of one worker that have not begun, first come first served.

    ``take`` and ``recall`` may be called from different threads: both remove from ``waiting`` with
    one atomic operation a request, so that a request is either run or given back, never both.
    """

    def __init__(self, frame_bytes_max: int) -> None:
        self.waiting: deque[Request] = deque()
        #: task number -> name, as the broker numbered them
        self.names: dict[int, str] = {}
        self._buffer = _buffer(frame_bytes_max)

    def connected(self, frame_bytes_max: int) -> None:
        """A broker connected anew: what an earlier one sent and did not begin is no longer ours."""
        # not emptied but replaced: a thread that took a request can tell which connection's it was
        self.waiting = deque()
        self._buffer = _buffer(frame_bytes_max)

    def feed(self, data: bytes) -> bool:
        """Take in one read; True when it brought new task numbers.

        Raises ``ProtocolError`` for a frame that a broker does not send.
        """
        data = self._buffer.join(data)
        append, unpack = self.waiting.append, REQUEST_SCAN.unpack_from
        renumbered = False
        offset, end = 0, len(data)
        body = offset + HEADER_BYTES
        while body <= end:
            size, tag, request_id, _ = unpack(data, offset)
            stop = body + size
            if stop > end:
                break
            if tag & 0xFF == _REQUEST:
                append((request_id, tag >> 16, data[body:stop]))
            elif tag & 0xFF == _TASKS:
                self._number(decode_body(data[body:stop]))
                renumbered = True
            else:
                raise ProtocolError(f"the broker sent a frame of kind {tag & 0xFF}")
            offset = stop
            body = offset + HEADER_BYTES
        self._buffer.keep(data[offset:])
        return renumbered

    def _number(self, numbers: object) -> None:
        if not isinstance(numbers, dict) or not all(
            isinstance(number, int) for number in numbers.values()
        ):
            raise ProtocolError("the task numbers are not a map of names to numbers")
        # of a task and its aliases, which share a number, any will do
        self.names = {number: str(name) for name, number in numbers.items()}

    def recall(self) -> list[int]:
        """Give back every request that has not begun: their ids, in order."""
        ids: list[int] = []
        pop = self.waiting.pop
        while True:
            try:
                ids.append(pop()[0])
            except IndexError:
                return ids[::-1]


class ReplyBuffer:
    """Finished answers on their way, and the rule for when they go.

    Answers of tiny tasks travel together; an answer never waits behind a task that is not known to
    be tiny, and never longer than ``FLUSH_S`` for the next tiny one to finish.
    """

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.frames: list[bytes] = []
        #: when the oldest of ``frames`` was finished
        self.since = 0.0
        #: numbers of tasks whose last run was quick; a task is not tiny until it was seen to be
        self.tiny: set[int] = set()
        #: numbers of tasks that must not run twice: their answers leave before anything else
        #: begins, so that what the broker holds as unanswered, behind the first, has not begun
        self.prompt: frozenset[int] = frozenset()

    def add(
        self, request_id: int, task: int, status: int, payload: bytes, service_s: float, now: float
    ) -> None:
        """One finished request: ``service_s`` is its wall time."""
        if not self.frames:
            self.since = now
        if service_s > SLOW_S:
            self.tiny.discard(task)
        elif task not in self.tiny and task not in self.prompt:
            self.tiny.add(task)
        if task in self.prompt:
            self.since = -math.inf
        tag = _REPLY | status << 8 | task << 16
        # one append: another thread may be flushing
        self.frames.append(
            _pack(len(payload), tag, request_id, service_s, self.worker | _UNMEASURED) + payload
        )

    def due(self, next_task: int, now: float) -> bool:
        """Whether the finished answers must leave before ``next_task`` begins."""
        return next_task not in self.tiny or now - self.since > FLUSH_S

    def take(self, cpu_share: float = -1.0) -> bytes:
        """The finished answers, joined; ``cpu_share`` is noted on the last of them."""
        frames = self.frames
        count = len(frames)
        if cpu_share >= 0.0 and count:
            permille = min(CPU_SCALE, int(cpu_share * CPU_SCALE))
            last = frames[count - 1]
            frames[count - 1] = last[:22] + permille.to_bytes(2, "little") + last[24:]
        data = b"".join(frames[:count])
        del frames[:count]
        return data


def error_payload(error: RequestError) -> bytes:
    """The body of a reply that carries an error."""
    return _encode(error.to_wire())
