"""The bytes of a client's connections, one connection after the other, for any number of threads.

One thread at a time writes, one reads; whoever writes and is held up by a broker that wants to be
read first, reads as well.  When a connection breaks, only the one who reads finds out (after it has
read all that had come); from then on nobody reads or writes until ``renew`` brings the next one.
Knows nothing of requests; ``client_connection.py`` does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections import deque
from time import monotonic
from typing import Final

from lbcore.core.errors import BrokerUnavailable
from lbcore.core.frames import FrameBuffer
from lbcore.core.topology import Address

from .client_parts import Bell, Greeting, error_text

READ_BYTES: Final = 1 << 18
#: frames of futures submitted in quick succession leave together, at the latest after this
CORK_S: Final = 0.0002
#: the same, by number
CORK_FRAMES: Final = 64
#: how often a thread that waits to send sees to it that somebody reads
TURN_CHECK_S: Final = 0.001
#: the last word waits so long for its turn
LAST_S: Final = 0.5
#: while there is no connection, who wants to read looks around so often
DOWN_CHECK_S: Final = 0.05


class Wire:
    """A connection that may be followed by another; ``lost`` says why there will be none."""

    def __init__(self, address: Address, keeps_trying: bool) -> None:
        self.address = address
        #: why it is over, for good
        self.lost: BrokerUnavailable | None = None
        #: set when it is over
        self.ended = threading.Event()
        #: there is no connection at the moment
        self.down = False
        #: held by whoever reads the socket
        self.reading = threading.RLock()
        #: whole frames that are to be taken as if they had been read
        self.local: deque[bytes] = deque()
        #: held by whoever writes to the socket; taken by ``take_turn`` only
        self._sending = threading.RLock()
        self._keeps_trying = keeps_trying
        #: what is read goes here first: to ask for so many bytes anew each time costs 15 µs
        self._room = memoryview(bytearray(READ_BYTES))
        self._outbox: list[bytes] = []
        self._sent_at = 0.0
        #: bytes that were read while sending, to be parsed by the next reader
        self._stash: list[bytes] = []
        #: a write was torn apart by an interrupt: nothing may follow it
        self._torn = False
        #: bytes were read and not yet cut into frames; true before a read if that was interrupted
        self._taken = False
        #: ends the background reader's wait
        self.bell: Bell | None = None
        self._renewed = threading.Condition()
        self._buffer = FrameBuffer(1 << 32)

    def install(self, greeting: Greeting) -> None:
        """Use this connection from now on.  Only its first user, or who has the turn, may."""
        self.socket = greeting.socket
        self.socket.settimeout(None)
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)
        self._buffer = FrameBuffer(1 << 32)
        self._stash = [greeting.rest] if greeting.rest else []
        self._torn = self._taken = False
        self._outbox.clear()

    # ---- what the one above does ---------------------------------------------------------------

    def recover(self, reason: str) -> None:
        """The connection broke: see to it that there will be another, in another thread."""
        raise NotImplementedError

    def tell_all(self) -> None:
        """Tell all who wait for an answer that it will not come."""
        raise NotImplementedError

    # ---- sending -------------------------------------------------------------------------------

    def take_turn(self) -> None:
        """Take ``_sending``.

        Whoever has it may wait for the broker, which takes no more before its answers are read; and
        the one who reads may be here, in a callback.  So whoever waits here reads as well.
        """
        if self._sending.acquire(blocking=False):
            return
        while not self._sending.acquire(timeout=TURN_CHECK_S):
            if self.reading.acquire(blocking=False):
                try:
                    if self.lost is None and not self.down and self._poll.poll(0):
                        self._read_aside()
                except OSError:
                    continue  # the one who sends will notice as well
                finally:
                    self.reading.release()

    def give_turn(self) -> None:
        """After ``take_turn``."""
        self._sending.release()

    def push(self, frame: bytes, soon: bool) -> None:
        """Send a frame, or leave it to be sent with the next ones within ``CORK_S``.

        The caller has the turn.  Raises ``BrokerUnavailable`` when the connection is lost.
        """
        self._outbox.append(frame)
        if soon:
            now = monotonic()
            if now - self._sent_at < CORK_S and len(self._outbox) < CORK_FRAMES:
                if self.bell is not None:
                    self.bell.ring()
                return
            self._sent_at = now
        self.flush_locked()

    def push_if_free(self, frames: bytes) -> None:
        """Send frames if that needs no waiting; else they leave with the next ones."""
        self._outbox.append(frames)
        if self.lost is None and self._sending.acquire(blocking=False):
            try:
                if self.down or self._await(0, writing=True):
                    self.flush_locked()
            except BrokerUnavailable:
                return  # whoever reads finds out
            finally:
                self._sending.release()
        elif self.bell is not None:
            self.bell.ring()

    @property
    def has_outbox(self) -> bool:
        """Whether something is left to be sent."""
        return bool(self._outbox)

    @property
    def has_read(self) -> bool:
        """Whether ``read`` has something without the socket, or has none to read."""
        return bool(self._stash or self.local or self.down)

    def flush(self) -> None:
        """Send what is left to be sent; whoever sends at the moment takes it along."""
        if self._outbox and self._sending.acquire(blocking=False):
            try:
                self._sent_at = monotonic()
                self.flush_locked()
            finally:
                self._sending.release()

    def flush_locked(self) -> None:
        """Send what is left to be sent.  The caller has the turn.

        Raises ``BrokerUnavailable`` when the connection is lost.
        """
        if self._outbox:
            data = b"".join(self._outbox)
            self._outbox.clear()
            self.send_locked(data)

    def send_locked(self, data: bytes) -> None:
        """Send; and read meanwhile, if the broker will take no more before we took its answers.

        The caller has the turn.  Without a connection nothing happens: whatever needs an answer is
        in the session's books, and sent with the next connection.
        """
        if self.lost is not None:
            raise self.failure()
        if self.down:
            return
        if self._torn:
            self._sever("a write was interrupted")
            return
        view = memoryview(data)
        self._torn = True
        try:
            while view:
                try:
                    view = view[self.socket.send(view, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    self._read_while_blocked()
        except OSError as error:
            self._sever(error_text(error))
        else:
            self._torn = False

    def _sever(self, reason: str) -> None:
        """Nothing more can be sent by this connection.

        Whoever reads now finds its end: this thread may hold locks of the user's that callbacks
        take.
        """
        if not self._keeps_trying:
            self.mark_lost(reason)
        self.shut()
        if self.lost is not None:
            raise self.failure() from None

    def _read_while_blocked(self) -> None:
        can_read = self.reading.acquire(blocking=False)
        try:
            if self._await(1000, reading=can_read, writing=True) & select.POLLIN:
                self._read_aside()
        finally:
            if can_read:
                self.reading.release()

    def _await(self, timeout_ms: int, reading: bool = False, writing: bool = False) -> int:
        """Wait until the socket can be read or written, or is at its end; 0 when it is not."""
        poll = select.poll()
        poll.register(self.socket, reading * select.POLLIN | writing * select.POLLOUT)
        ready = poll.poll(timeout_ms)
        return ready[0][1] if ready else 0

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

        It is empty, too, when the connection broke, and now and then until there is another.  The
        caller holds ``reading``.  Raises ``BrokerUnavailable`` when the connection is lost.
        """
        if self.local:
            # whole frames, which have nothing to do with an unfinished one in the buffer
            return b"".join(self.local.popleft() for _ in range(len(self.local)))
        if self.down:
            self._wait_for_another(timeout_s)
            return b""
        if self._taken:
            return self._broken("a read was interrupted")
        if self._stash:
            data = b"".join(self._stash)
            self._stash.clear()
        else:
            if timeout_s is not None and not self._poll.poll(max(0.0, timeout_s) * 1000.0):
                return b""
            try:
                self._taken = True
                data = bytes(self._room[: self.socket.recv_into(self._room)])
            except OSError as error:
                return self._broken(error_text(error))
            if not data:
                return self._broken("it closed the connection")
        data = self._buffer.join(data)
        self._taken = bool(data)
        return data

    def keep(self, rest: bytes) -> None:
        """Give back what followed the last whole frame of ``read``."""
        self._buffer.keep(rest)
        self._taken = False

    def _broken(self, reason: str) -> bytes:
        """The connection is at its end, and all that came by it was read."""
        if self.lost is not None or not self._keeps_trying:
            raise self.lose(reason)
        self._buffer = FrameBuffer(1 << 32)
        # whoever is at sending gives up
        self.shut()
        self.down = True
        self.recover(reason)
        return b""

    def _wait_for_another(self, timeout_s: float | None) -> None:
        """Wait a moment for the next connection; holding ``reading`` does not hinder it."""
        if self.lost is not None:
            raise self.failure()
        moment_s = DOWN_CHECK_S if timeout_s is None else min(DOWN_CHECK_S, max(0.0, timeout_s))
        with self._renewed:
            if self.down and self.lost is None:
                self._renewed.wait(moment_s)

    def up(self) -> None:
        """There is a connection again: whoever waits may read it."""
        self.down = False
        with self._renewed:
            self._renewed.notify_all()

    # ---- the end -------------------------------------------------------------------------------

    def failure(self) -> BrokerUnavailable:
        """What to raise now that the connection is lost: a new one for each who is told."""
        return BrokerUnavailable(str(self.lost))

    def mark_lost(self, reason: str) -> None:
        """It is over, for this reason if for none before."""
        if self.lost is None:
            self.lost = BrokerUnavailable(f"lost the broker at {self.address}: {reason}")
            self.ended.set()
            with self._renewed:
                self._renewed.notify_all()

    def send_last(self, frame: bytes) -> bool:
        """Send one more frame, though all is over; False when the last write was torn apart."""
        if not self._sending.acquire(timeout=LAST_S):
            return True  # there is no way to say it
        try:
            if not self._torn and self._await(0, writing=True) == select.POLLOUT:
                self.socket.send(frame, socket.MSG_DONTWAIT)
            return not self._torn
        finally:
            self._sending.release()

    def shut(self) -> None:
        """Nothing more is sent or received."""
        with contextlib.suppress(OSError):  # the broker was faster
            self.socket.shutdown(socket.SHUT_RDWR)

    def renounce(self, reason: str) -> None:
        """In a forked process: no use of the socket, and no thread that gives back the locks."""
        self.reading, self._sending = threading.RLock(), threading.RLock()
        self._renewed, self.ended = threading.Condition(), threading.Event()
        self.lost = BrokerUnavailable(reason)
        self.ended.set()
        self._stash.clear()
        self._outbox.clear()
        self.discard()

    def discard(self) -> None:
        """Close what is open; nobody uses it any more."""
        self.socket.close()
        if self.bell is not None:
            self.bell.close()
            self.bell = None

    def lose(self, reason: str) -> BrokerUnavailable:
        """It is over: tell all; returns what to raise."""
        self.mark_lost(reason)
        self.tell_all()
        return self.failure()
