"""One connection to a broker with many requests in flight, shared by any number of threads.

Whoever waits for an answer reads the socket itself, if nobody else does: a lone caller needs no
second thread and no hand-over between threads.  When futures are outstanding, or a second thread
waits, a background thread reads for all.  Used by ``client.py`` only.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from time import monotonic
from typing import Final

from lbcore.core.errors import BrokerUnavailable, ProtocolError
from lbcore.core.frames import (
    HEADER_BYTES,
    REQUEST_HEADER,
    SEQUENCE_BITS,
    SEQUENCE_MASK,
    FrameBuffer,
    Kind,
    decode_body,
)
from lbcore.core.topology import Address

from .client_parts import Answer, Bell, Flow, Sink, connect, cut_frames, error_text, greet

READ_BYTES: Final = 1 << 18
#: frames of futures submitted in quick succession leave together, at the latest after this
CORK_S: Final = 0.0002
#: the same, by number
CORK_FRAMES: Final = 64
#: how often a thread that waits to send sees to it that somebody reads
TURN_CHECK_S: Final = 0.001


class Connection:
    """Frames out, answers in, matched by id."""

    def __init__(self, address: Address, connect_timeout_s: float) -> None:
        """Connect and greet.  Raises ``BrokerUnavailable``."""
        self.address = address
        #: id -> what takes its answer
        self.sinks: dict[int, Sink] = {}
        #: streams, which know the ids of their own requests
        self.flows: set[Flow] = set()
        self.lost: BrokerUnavailable | None = None
        #: held by whoever reads the socket
        self.reading = threading.RLock()
        #: held by whoever writes to the socket; taken by ``_take_turn`` only
        self._sending = threading.RLock()
        self._numbering = threading.Lock()
        #: what is read goes here first: to ask for so many bytes anew each time costs 15 µs
        self._room = memoryview(bytearray(READ_BYTES))
        self._sequence = 0
        self._outbox: list[bytes] = []
        self._sent_at = 0.0
        self._buffer = FrameBuffer(1 << 32)
        #: bytes that were read while sending, to be parsed by the next reader
        self._stash: list[bytes] = []
        self._followers = 0
        #: the background reader sleeps, or was never started
        self._parked = True
        self._reader_wanted = threading.Condition()
        self._reader: threading.Thread | None = None
        #: ends the background reader's wait
        self._bell: Bell | None = None
        try:
            self.socket = connect(address, connect_timeout_s)
            welcome = greet(self.socket, self._buffer)
        except (OSError, ProtocolError) as error:
            raise BrokerUnavailable(
                f"no broker answers at {address}: {error_text(error)}"
            ) from None
        #: the broker's number for this client, in the upper half of every id
        self._first_id: int = welcome["client"] << SEQUENCE_BITS
        #: task name or alias -> number
        self.tasks: dict[str, int] = welcome["tasks"]
        #: worker names by number
        self.workers: list[str] = welcome["workers"]
        self.frame_bytes_max: int = welcome["frame_bytes_max"]
        self.socket.settimeout(None)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)

    def next_id(self) -> int:
        """An id for one request."""
        with self._numbering:
            self._sequence = sequence = self._sequence % SEQUENCE_MASK + 1
        return self._first_id + sequence

    def next_ids(self, count: int) -> range:
        """Ids for ``count`` requests."""
        with self._numbering:
            # 4 billion requests later the first ones are long answered
            first = self._sequence + 1 if self._sequence + count < SEQUENCE_MASK else 1
            self._sequence = first + count - 1
        return range(self._first_id + first, self._first_id + first + count)

    # ---- sending -------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send frames now.  Raises ``BrokerUnavailable`` when the connection is lost."""
        self._take_turn()
        try:
            if self._outbox:
                data = b"".join(self._outbox) + data
                self._outbox.clear()
            self._send_locked(data)
        finally:
            self._sending.release()

    def send_soon(self, frame: bytes) -> None:
        """Send a frame, or leave it to be sent with the next ones within ``CORK_S``.

        Raises ``BrokerUnavailable`` when the connection is lost.
        """
        self._take_turn()
        try:
            if self.lost is not None:
                raise self.failure()
            self._outbox.append(frame)
            now = monotonic()
            if now - self._sent_at < CORK_S and len(self._outbox) < CORK_FRAMES:
                if self._bell is not None:
                    self._bell.ring()
                return
            self._sent_at = now
            self._flush_locked()
        finally:
            self._sending.release()

    def _take_turn(self) -> None:
        """Take ``_sending``.

        Whoever has it may wait for the broker, which takes no more before its answers are read; and
        the one who reads may be here, in a callback.  So whoever waits here reads as well.
        """
        if self._sending.acquire(blocking=False):
            return
        while not self._sending.acquire(timeout=TURN_CHECK_S):
            if self.reading.acquire(blocking=False):
                try:
                    if self.lost is None and self._poll.poll(0):
                        self._read_aside()
                except OSError:
                    continue  # the one who sends will notice as well
                finally:
                    self.reading.release()

    def _flush_locked(self) -> None:
        if self._outbox:
            data = b"".join(self._outbox)
            self._outbox.clear()
            self._send_locked(data)

    def _send_locked(self, data: bytes) -> None:
        """Send; and read meanwhile, if the broker will take no more before we took its answers."""
        if self.lost is not None:
            raise self.failure()
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self.socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    self._read_while_blocked()
        except OSError as error:
            self._mark_lost(error_text(error))
            # whoever reads now finds the end, and tells all who wait: this thread may hold locks
            # of the user's that their callbacks take
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            raise self.failure() from None

    def _read_while_blocked(self) -> None:
        can_read = self.reading.acquire(blocking=False)
        try:
            wanted = [self.socket] if can_read else []
            readable, _, _ = select.select(wanted, [self.socket], [], 1.0)
            if readable:
                self._read_aside()
        finally:
            if can_read:
                self.reading.release()

    def _read_aside(self) -> None:
        """Put what has come aside, for the next reader.  The caller holds ``reading``."""
        try:
            data = self.socket.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionResetError("the broker closed the connection")
        self._stash.append(data)

    # ---- receiving -----------------------------------------------------------------------------

    def read(self, timeout_s: float | None = None) -> bytes:
        """The next whole frames, joined; empty when the time ran out or a frame is unfinished.

        The caller holds ``reading``.  Raises ``BrokerUnavailable`` when the connection is lost.
        """
        if self._stash:
            data = b"".join(self._stash)
            self._stash.clear()
        else:
            if timeout_s is not None and not self._poll.poll(max(0.0, timeout_s) * 1000.0):
                return b""
            try:
                data = bytes(self._room[: self.socket.recv_into(self._room)])
            except OSError as error:
                raise self._lose(error_text(error)) from None
            if not data:
                raise self._lose("it closed the connection")
        return self._buffer.join(data)

    def keep(self, rest: bytes) -> None:
        """Give back what followed the last whole frame of ``read``."""
        self._buffer.keep(rest)

    def dispatch(self, data: bytes) -> None:
        """Hand each whole frame to its sink, and keep what is left.  The caller holds ``reading``.

        A sink may run code of the user's that waits for another answer, and so reads: all frames
        are cut and the rest is put away before the first sink is called.
        """
        frames, rest = cut_frames(data)
        self._buffer.keep(rest)
        for request_id, kind, frame in frames:
            self._deliver(request_id, kind, frame)

    def deliver(self, frames: list[bytes]) -> None:
        """Hand over frames that a stream read and that are not its own."""
        for frame in frames:
            _, kind, _, _, request_id, _, _ = REQUEST_HEADER.unpack_from(frame)
            self._deliver(request_id, kind, frame)

    def _deliver(self, request_id: int, kind: int, frame: bytes) -> None:
        sink = self.sinks.pop(request_id, None)
        if sink is not None:
            sink(frame)
        elif kind != Kind.REPLY:
            self._take_news(kind, frame[HEADER_BYTES:])
        else:
            # one that nobody waits for any more is dropped
            any(flow.bring(request_id, frame) for flow in tuple(self.flows))

    def _take_news(self, kind: int, body: bytes) -> None:
        """A frame that answers nothing: news of tasks, or a goodbye."""
        if kind == Kind.TASKS:
            self.tasks = decode_body(body)
        elif kind == Kind.GOODBYE:
            raise self._lose(str(decode_body(body)))

    def wait(self, answer: Answer, until: float | None) -> bool:
        """Wait for an answer: by reading, or for the thread that reads already.

        False when ``until`` (monotonic seconds) came first.
        """
        while not answer.is_set:
            if until is not None and monotonic() >= until:
                return False
            if self.reading.acquire(blocking=False):
                try:
                    while not answer.is_set:
                        left = None if until is None else until - monotonic()
                        if left is not None and left <= 0.0:
                            return False
                        data = self.read(left)
                        if data:
                            self.dispatch(data)
                finally:
                    self.reading.release()
            else:
                # someone else reads: it may stop before our answer comes, the background one not
                self.want_reader(1)
                try:
                    answer.wait(None if until is None else max(0.0, until - monotonic()))
                finally:
                    self.want_reader(-1)
        return True

    # ---- the background reader -----------------------------------------------------------------

    def expect(self, request_id: int, sink: Sink) -> None:
        """Have the background thread wait for an answer and give it to ``sink``."""
        self.sinks[request_id] = sink
        if self._parked:
            self._unpark()

    def want_reader(self, change: int) -> None:
        """One more or one less thread waits here for what another one reads."""
        with self._reader_wanted:
            self._followers += change
        if change > 0 and self._parked:
            self._unpark()

    def _unpark(self) -> None:
        with self._reader_wanted:
            if self._reader is None and self.lost is None:
                self._bell = Bell()
                self._reader = threading.Thread(
                    target=self._read_for_all, name="lb-client", daemon=True
                )
                self._reader.start()
            self._reader_wanted.notify()

    def _is_wanted(self) -> bool:
        return bool(self.sinks or self._followers or self.lost)

    def _read_for_all(self) -> None:
        assert self._bell is not None
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        poll.register(self._bell, select.POLLIN)
        while self.lost is None:
            with self._reader_wanted:
                # first parked, then the look: who adds a sink meanwhile sees the one or is seen
                self._parked = True
                self._reader_wanted.wait_for(self._is_wanted)
                self._parked = False
            with self.reading, contextlib.suppress(BrokerUnavailable):
                while self._is_wanted() and self.lost is None:
                    self._read_turn(poll, self._bell)
        self._tell_all()

    def _read_turn(self, poll: select.poll, bell: Bell) -> None:
        if not self._stash:
            bell.arm()
            events = poll.poll(CORK_S * 1000.0 if self._outbox else None)
            ready = {descriptor for descriptor, _ in events}
            if bell.fileno() in ready:
                bell.clear()
            if not self._stash and not ready - {bell.fileno()}:
                self._flush()
                return
        data = self.read()
        if data:
            self.dispatch(data)
        self._flush()

    def _flush(self) -> None:
        # whoever sends at the moment takes the outbox along; reading is what it may wait for
        if self._outbox and self._sending.acquire(blocking=False):
            try:
                self._sent_at = monotonic()
                self._flush_locked()
            finally:
                self._sending.release()

    # ---- the end -------------------------------------------------------------------------------

    def failure(self) -> BrokerUnavailable:
        """What to raise now that the connection is lost: a new one for each who is told."""
        return BrokerUnavailable(str(self.lost))

    def _mark_lost(self, reason: str) -> None:
        if self.lost is None:
            self.lost = BrokerUnavailable(f"lost the broker at {self.address}: {reason}")

    def _lose(self, reason: str) -> BrokerUnavailable:
        self._mark_lost(reason)
        self._tell_all()
        return self.failure()

    def _tell_all(self) -> None:
        """Tell all who wait for an answer that it will not come."""
        while self.sinks:
            try:
                _, sink = self.sinks.popitem()
            except KeyError:
                break  # another thread is telling them, too
            sink(None)
        for flow in tuple(self.flows):
            flow.bring(0, None)

    def close(self) -> None:
        """Close; whatever is unanswered is given up."""
        self._lose("this client was closed")
        with contextlib.suppress(OSError):  # the broker was faster
            self.socket.shutdown(socket.SHUT_RDWR)
        with self._reader_wanted:
            self._reader_wanted.notify_all()
        if self._bell is not None:
            self._bell.arm()
            self._bell.ring()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join()
        self._take_turn()
        try:
            self.socket.close()
            if self._bell is not None:
                self._bell.close()
                self._bell = None
        finally:
            self._sending.release()
