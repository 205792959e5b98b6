"""A worker's bookkeeping: what waits, in which order it runs, when finished answers are sent, and
what it remembers when its broker is lost.

Pure, like the broker: bytes in, requests and bytes out.  ``lbcore.shell.worker_process`` feeds it
and runs the tasks; a simulation can run the same class in virtual time.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import Enum, auto
from typing import Final, NamedTuple

import msgspec

from .errors import ProtocolError, RequestError
from .frames import (
    CONTROL_BYTES_MAX,
    CPU_SCALE,
    CPU_UNKNOWN,
    HEADER_BYTES,
    REPLY_SCAN,
    REQUEST_SCAN,
    Flag,
    FrameBuffer,
    Kind,
    decode_body,
)

#: a task that takes longer never has finished answers waiting for it
SLOW_S: Final = 0.00005
#: finished answers of tiny tasks are sent together, at the latest after this
FLUSH_S: Final = 0.0002
#: answers of tasks that must not run twice are kept, so many, so much, so long
KEPT_MAX: Final = 4096
KEPT_BYTES_MAX: Final = 16 << 20
KEPT_S: Final = 60.0
#: how many requests may be taken back before they have come
UNWANTED_MAX: Final = 1024
UNWANTED_READS: Final = 1000

#: (id, task number, body) of a request
Request = tuple[int, int, bytes]

_REPLY = int(Kind.REPLY)
_REQUEST = int(Kind.REQUEST)
_TASKS = int(Kind.TASKS)
_UNMEASURED = CPU_UNKNOWN << 16
#: kind and the flag RESENT of a tag: only a request that was not sent before looks like _REQUEST
_FIRST_SENT = 0xFF | int(Flag.RESENT) << 8
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

    def __init__(
        self,
        frame_bytes_max: int,
        is_repeat: Callable[[Request, Collection[int]], bool] | None = None,
        on_tasks: Callable[[], None] | None = None,
    ) -> None:
        """``is_repeat`` is asked about each request that was sent before, and told the ids of what
        waits: True drops it.

        ``on_tasks`` is called when there are new ``names``, before the requests behind them.
        """
        self.waiting: deque[Request] = deque()
        #: task number -> name, as the broker numbered them
        self.names: dict[int, str] = {}
        self._buffer = _buffer(frame_bytes_max)
        self._is_repeat = is_repeat
        self._on_tasks = on_tasks
        #: ids that were taken back before they came, oldest first, each with the reads it is
        #: still looked for
        self.unwanted: dict[int, int] = {}

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
        here: set[int] | None = None
        offset, end = 0, len(data)
        body = offset + HEADER_BYTES
        while body <= end:
            size, tag, request_id, _ = unpack(data, offset)
            stop = body + size
            if stop > end:
                break
            if tag & _FIRST_SENT == _REQUEST:
                append((request_id, tag >> 16, data[body:stop]))
            elif tag & 0xFF == _REQUEST:
                request = (request_id, tag >> 16, data[body:stop])
                if here is None:
                    # once a read: thousands come again at a time
                    here = {each[0] for each in tuple(self.waiting)}
                if self._is_repeat is None or not self._is_repeat(request, here):
                    append(request)
                    here.add(request_id)
            elif tag & 0xFF == _TASKS:
                self._number(decode_body(data[body:stop]))
                renumbered = True
                if self._on_tasks is not None:
                    self._on_tasks()
            else:
                raise ProtocolError(f"the broker sent a frame of kind {tag & 0xFF}")
            offset = stop
            body = offset + HEADER_BYTES
        self._buffer.keep(data[offset:])
        return renumbered

    def take_out(self, request_id: int) -> Request | None:
        """Remove one request that has not begun, and return it; None when it is not here."""
        for request in tuple(self.waiting):
            if request[0] == request_id:
                try:
                    self.waiting.remove(request)
                except ValueError:
                    return None  # it has begun meanwhile
                return request
        return None

    def expect_unwanted(self, request_id: int) -> None:
        """A request was taken back before it came: ``drop_unwanted`` finds it when it comes."""
        self.unwanted[request_id] = UNWANTED_READS
        if len(self.unwanted) > UNWANTED_MAX:
            del self.unwanted[next(iter(self.unwanted))]

    def drop_unwanted(self) -> list[Request]:
        """Remove and return what was taken back before it came; to be called after a read."""
        unwanted = self.unwanted
        found = [self.take_out(each[0]) for each in tuple(self.waiting) if each[0] in unwanted]
        dropped = [request for request in found if request is not None]
        for request in dropped:
            unwanted.pop(request[0], None)
        for request_id, reads in list(unwanted.items()):
            unwanted[request_id] = reads - 1
            if reads <= 1:
                # it has been answered, or it would have come long ago
                del unwanted[request_id]
        return dropped

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

    def __init__(
        self, worker: int, keep: Callable[[int, bytes, float], None] | None = None
    ) -> None:
        """``keep`` gets the task number, the frame and the time of each ``prompt`` answer."""
        self.worker = worker
        self._keep = keep
        #: the frame that left last
        self.last = b""
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
        tag = _REPLY | status << 8 | task << 16
        frame = _pack(len(payload), tag, request_id, service_s, self.worker | _UNMEASURED) + payload
        if task in self.prompt:
            self.since = -math.inf
            if self._keep is not None:
                self._keep(task, frame, now)
        # one append: another thread may be flushing
        self.frames.append(frame)

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
        if count:
            self.last = frames[count - 1]
        del frames[:count]
        return data

    def has_sent_last(self, request_id: int) -> bool:
        """Whether the answer that left last was this one's."""
        return self.last[8:16] == request_id.to_bytes(8, "little")


class Finished(NamedTuple):
    """One answer, by the name of its task: numbers differ between brokers."""

    task: str
    frame: bytes
    #: when it was finished, monotonic
    at: float


class Repeat(Enum):
    """What to do with a request that was sent before."""

    #: it has not begun here: run it
    RUN = auto()
    #: it runs or waits here: its answer will come
    IGNORE = auto()
    #: it was done, and its answer is here
    ANSWER = auto()
    #: it was begun, must not run twice, and nobody knows what became of it
    LOST = auto()


class WorkerBooks:
    """What a worker remembers beyond one connection to a broker.

    ``undelivered``: what finished and could not be sent, for the next broker.  ``kept``: answers
    of tasks that must not run twice, also those that were sent, since a broker may die with them.
    """

    def __init__(self) -> None:
        self.undelivered: dict[int, Finished] = {}
        self._kept: OrderedDict[int, Finished] = OrderedDict()
        self._kept_bytes = 0

    def keep(self, task: str, frame: bytes, now: float) -> None:
        """Remember the answer to a request that must not run twice."""
        request_id = int.from_bytes(frame[8:16], "little")
        self._forget(request_id)
        self._kept[request_id] = Finished(task, frame, now)
        self._kept_bytes += len(frame)
        while self._kept and (
            len(self._kept) > KEPT_MAX
            or self._kept_bytes > KEPT_BYTES_MAX
            or now - self._oldest().at > KEPT_S
        ):
            self._kept_bytes -= len(self._kept.popitem(last=False)[1].frame)

    def _oldest(self) -> Finished:
        return self._kept[next(iter(self._kept))]

    def _forget(self, request_id: int) -> None:
        finished = self._kept.pop(request_id, None)
        if finished is not None:
            self._kept_bytes -= len(finished.frame)

    def not_sent(self, data: bytes, names: Mapping[int, str], now: float) -> None:
        """Answers, joined, that no broker has taken; ``names`` is how their broker named tasks."""
        for frame in split_replies(data):
            name = names.get(frame[6] | frame[7] << 8)
            if name is not None:
                request_id = int.from_bytes(frame[8:16], "little")
                self.undelivered[request_id] = Finished(name, frame, now)

    def begun(self, running: Mapping[int, str]) -> list[tuple[int, str]]:
        """Id and task of all that was begun and not answered, for a new broker's greeting."""
        done = {request_id: finished.task for request_id, finished in self.undelivered.items()}
        return list({**done, **running}.items())

    def deliver(self, numbers: Mapping[str, int], worker: int) -> bytes:
        """All undelivered answers, as a broker with these task numbers reads them."""
        waiting, self.undelivered = self.undelivered, {}
        return b"".join(_renumbered(finished, numbers, worker) for finished in waiting.values())

    def answer_again(self, request_id: int, numbers: Mapping[str, int], worker: int) -> bytes:
        """The answer of a request that must not run twice, for a broker with these numbers."""
        finished = self._kept.get(request_id)
        return b"" if finished is None else _renumbered(finished, numbers, worker)

    def judge(
        self, request_id: int, here: Collection[int], *, idempotent: bool, started: bool
    ) -> Repeat:
        """What to do with a request that was sent before.

        ``here`` are the ids that run or wait, ``started`` whether it is in the ring of started ids.
        """
        if request_id in here or request_id in self.undelivered:
            return Repeat.IGNORE
        if request_id in self._kept:
            return Repeat.ANSWER
        return Repeat.LOST if started and not idempotent else Repeat.RUN


def split_replies(data: bytes) -> Iterator[bytes]:
    """The whole frames of a piece of a stream, one by one."""
    offset = 0
    while offset + HEADER_BYTES <= len(data):
        stop = offset + HEADER_BYTES + int.from_bytes(data[offset : offset + 4], "little")
        yield data[offset:stop]
        offset = stop


def _renumbered(finished: Finished, numbers: Mapping[str, int], worker: int) -> bytes:
    """The frame with another broker's numbers; empty when it has no such task."""
    number, frame = numbers.get(finished.task), finished.frame
    if number is None:
        return b""
    head = frame[:6] + number.to_bytes(2, "little") + frame[8:20]
    return head + worker.to_bytes(2, "little") + frame[22:]


def error_payload(error: RequestError) -> bytes:
    """The body of a reply that carries an error."""
    return _encode(error.to_wire())
