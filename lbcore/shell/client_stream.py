"""Many requests over one connection: the bulk path of the client.

Nothing is built per request that the caller does not see: frames are made and sent in batches as
answers make room, answers are cut out of whole reads.  Used by ``client.py`` only.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import monotonic, sleep
from typing import Any, Final

import msgspec

from lbcore.core.errors import BadArguments, LBError, RequestError, Status, TooLarge
from lbcore.core.frames import HEADER_BYTES, REPLY_HEADER, REQUEST_HEADER, Kind
from lbcore.core.session import Book

from .client_busy import BusyRequests
from .client_calls import Options, encode_arguments, error_body, reply_error, unknown_task
from .client_connection import Connection

#: with a rate, requests that are due within this leave together
RATE_STEP_S: Final = 0.0005
#: while answers come in, room for fewer requests than this is not worth a write of its own
BATCH_SHARE: Final = 8

Arguments = Mapping[str, Any] | Sequence[Any] | None

_REQUEST = int(Kind.REQUEST)
_REPLY = int(Kind.REPLY)
_BUSY = int(Status.BUSY)
_decode = msgspec.msgpack.Decoder().decode


class Reply(msgspec.Struct, gc=False, frozen=True):
    """The answer to one request of a stream."""

    #: position of its call in the stream
    index: int
    #: 0 for success, else a ``Status``
    status: int
    #: name of the worker that ran it; empty when the broker answered
    worker: str
    #: seconds that the worker spent on it
    service_s: float
    #: seconds from sending to answer, as the client saw it
    latency_s: float
    #: the result as msgpack, or the error
    body: bytes
    #: the request's id, for ``Client.explain``
    request_id: int

    def value(self) -> Any:
        """The result; raises the error that came instead."""
        if self.status:
            raise reply_error(self.status, self.body)
        return _decode(self.body)

    def error(self) -> RequestError | None:
        """The error, or None for a success."""
        return reply_error(self.status, self.body) if self.status else None


def stream(
    connection: Connection,
    calls: Iterable[tuple[str, Arguments]],
    options: Options,
    *,
    window: int = 1000,
    rate: float | None = None,
    ordered: bool = False,
) -> Iterator[Reply]:
    """Yield a reply for each call, as they finish; see ``Client.stream``.

    ``ordered`` counts an answer against the window until all before it have come, for a caller that
    keeps answers to yield them in order.  Raises ``BrokerUnavailable`` when the connection is lost.
    """
    if window < 1:
        raise BadArguments(f"window must be at least 1, not {window}")
    if rate is not None and not rate > 0:
        raise BadArguments(f"rate must be above 0 requests/s, not {rate}")
    flow = _Flow(connection, iter(calls), options, window, rate, ordered)
    try:
        while flow.fill():
            yield from flow.receive()
    finally:
        flow.close()


class _Flow:
    """One stream: what it has sent and not yet received."""

    def __init__(
        self,
        connection: Connection,
        calls: Iterator[tuple[str, Arguments]],
        options: Options,
        window: int,
        rate: float | None,
        ordered: bool,
    ) -> None:
        self._connection = connection
        self._calls = calls
        self._options = options
        self._window = window
        self._rate = rate
        self._ordered = ordered
        #: what is in flight: id -> (frame, when sent, position)
        self._open: Book = {}
        #: those of them that were answered ``Busy`` and are sent again; None when none ever is
        self._busy: BusyRequests | None = None
        if options.retry_busy_s > 0.0:
            self._busy = BusyRequests(connection, self._open, options.retry_busy_s)
        self._sent = 0
        self._ended = False
        self._began = monotonic()
        #: replies made here, and those that another reader of the connection brought
        self._refused: list[Reply] = []
        self._brought: deque[bytes] = deque()
        self._arrived = threading.Event()
        connection.add_flow(self, self._open)
        #: why the calls ended before their end
        self._error: LBError | None = None

    def fill(self) -> bool:
        """Send as much as there is room for; False when everything is sent and answered.

        Raises ``BadArguments`` or ``UnknownTask`` for a call that cannot be sent, in its turn.
        """
        if self._busy:
            self._busy.send_due()
        if not self._ended:
            in_flight = len(self._open)
            room = self._window - in_flight
            if self._ordered and self._open:
                # ids and positions rise together, so the oldest is first
                oldest = next(iter(self._open.values()))[2]
                if self._busy:
                    oldest = min(oldest, self._busy.oldest)
                room = min(room, self._window - (self._sent - oldest))
            if self._rate is not None:
                due = int((monotonic() - self._began + RATE_STEP_S) * self._rate) + 1
                room = min(room, due - self._sent)
            if room > 0 and (room * BATCH_SHARE >= self._window or not in_flight or self._rate):
                self._send(room)
        if self._open or self._refused or not self._ended:
            return True
        if self._error is not None:
            raise self._error
        return False

    def _send(self, count: int) -> None:
        connection, options = self._connection, self._options
        basis, limit = connection.basis, connection.session.frame_bytes_max
        numbers, pack, flags, tail = basis[2], REQUEST_HEADER.pack, options.flags, options.tail
        deadline_ms = options.deadline_ms
        opened, begin, position, now = self._open, self._sent, self._sent, monotonic()
        ids = connection.next_ids(count)
        frames: list[bytes] = []
        try:
            for request_id, (task, arguments) in zip(ids, islice(self._calls, count), strict=False):
                # at once: the caller may use the same dict again for the next call
                body = b"" if arguments is None else _body(arguments)
                number = numbers.get(task)
                if number is None:
                    raise unknown_task(task, numbers)
                if len(body) > limit:
                    self._refuse(position, request_id, len(body), limit)
                else:
                    frame = (
                        pack(len(body), _REQUEST, flags, number, request_id, deadline_ms, tail)
                        + body
                    )
                    opened[request_id] = (frame, now, position)
                    frames.append(frame)
                position += 1
        except LBError as error:
            # its turn is after the answers to all before it
            self._error = error
        finally:
            self._ended = self._error is not None or position - begin < count
            self._sent = position
            connection.post_many(basis, ids, b"".join(frames), opened)

    def _refuse(self, position: int, request_id: int, size: int, limit: int) -> None:
        error = TooLarge(f"{size} bytes of arguments; the limit is {limit}")
        status = int(Status.TOO_LARGE)
        self._refused.append(Reply(position, status, "", 0.0, 0.0, error_body(error), request_id))

    def receive(self) -> list[Reply]:
        """The replies of one read, after waiting for it; none when it is time to send instead."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        if self._brought:
            return self._take_brought()
        connection = self._connection
        timeout_s = self._until_due()
        if self._busy:
            timeout_s = self._busy.until_due(timeout_s)
        if not self._open and timeout_s is not None:
            # paced, and nothing in flight: the next request is not due yet
            sleep(timeout_s)
            return []
        if not connection.reading.acquire(blocking=False):
            # another thread reads; with one more answer to wait for it will not stop too early
            connection.follow(1)
            try:
                self._arrived.wait(timeout_s)
            finally:
                connection.follow(-1)
            return self._take_brought()
        try:
            if self._brought:
                # whoever read until now was faster than this thread
                return self._take_brought()
            data = connection.read(timeout_s)
            replies, others, rest = self._split(data)
            connection.keep(rest)
        finally:
            connection.reading.release()
        if others:
            connection.deliver(others)
        return replies

    def bring(self, request_id: int, frame: bytes | None) -> bool:
        """Another reader found this frame: take it if it is ours.  None: the connection is lost."""
        if frame is None:
            self._arrived.set()
            return True
        if request_id not in self._open:
            return False
        self._brought.append(frame)
        self._arrived.set()
        return True

    def _take_brought(self) -> list[Reply]:
        self._arrived.clear()
        if self._connection.lost is not None and not self._brought:
            raise self._connection.failure()
        frames = [self._brought.popleft() for _ in range(len(self._brought))]
        return self._split(b"".join(frames))[0]

    def _until_due(self) -> float | None:
        """Seconds until the next request of a paced stream is due; None when it need not hurry."""
        if self._rate is None or self._ended or len(self._open) >= self._window:
            return None
        return max(0.0, self._began + self._sent / self._rate - monotonic())

    def _split(self, data: bytes) -> tuple[list[Reply], list[bytes], bytes]:
        """Our replies, other frames, and the unfinished rest of one read."""
        unpack, pop, busy = REPLY_HEADER.unpack_from, self._open.pop, self._busy
        workers, now = self._connection.session.workers, monotonic()
        mine: list[Reply] = []
        others: list[bytes] = []
        offset, end = 0, len(data)
        while offset + HEADER_BYTES <= end:
            size, kind, status, _, request_id, service_s, worker, _ = unpack(data, offset)
            body = offset + HEADER_BYTES
            stop = body + size
            if stop > end:
                break
            sent = pop(request_id, None) if kind == _REPLY else None
            if sent is None and kind == Kind.WORKERS:
                # replies that follow may come from those that it names
                self._connection.deliver([data[offset:stop]])
                workers = self._connection.session.workers
            elif sent is None:
                others.append(data[offset:stop])
            elif (
                status
                and busy is not None
                and status == _BUSY
                and busy.keep(request_id, sent, data[body:stop])
            ):
                pass
            else:
                mine.append(
                    Reply(
                        sent[2],
                        status,
                        workers[worker] if service_s and worker < len(workers) else "",
                        service_s,
                        now - sent[1],
                        data[body:stop],
                        request_id,
                    )
                )
            offset = stop
        if busy:
            mine = [busy.settled(reply, now) for reply in mine]
        return mine, others, data[offset:]

    def close(self) -> None:
        """Take back what is still in flight: its answers would find nobody."""
        self._connection.remove_flow(self, self._open)


def _body(arguments: Arguments) -> bytes:
    if arguments is None:
        return b""
    if isinstance(arguments, Mapping):
        return encode_arguments((), arguments)
    return encode_arguments(arguments, {})
