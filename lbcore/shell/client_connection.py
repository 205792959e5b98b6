"""A client's session with a broker: many requests in flight, shared by any number of threads.

Whoever waits for an answer reads the socket itself, if nobody else does: a lone caller needs no
second thread and no hand-over between threads.  When futures are outstanding, or a second thread
waits, a background thread reads for all.  A connection that breaks is followed by another, on which
everything unanswered is sent again.  Used by ``client.py`` only.
"""

from __future__ import annotations

import contextlib
import threading
from time import monotonic
from typing import Any, Final

from lbcore.core.errors import BrokerUnavailable, LBError, ProtocolError, TooLarge
from lbcore.core.frames import HEADER_BYTES, REQUEST_HEADER, Kind, control_frame, decode_body
from lbcore.core.session import Book, Session
from lbcore.core.topology import Address

from .client_accepted import take_accepted
from .client_busy import Clock, with_deadline
from .client_calls import unknown_task
from .client_parts import Answer, Flow, Greeting, Line, Sink, connect, cut_frames, greet, reach
from .client_process import keep_track
from .client_reader import BackgroundReader
from .client_recovery import Recovery
from .client_wire import Wire
from .secrets import Credentials

#: how long ``close`` waits for the turn to say goodbye
GOODBYE_S: Final = 0.5

_REQUEST = int(Kind.REQUEST)
_REPLY = int(Kind.REPLY)
_CONTROL_REPLY = int(Kind.CONTROL_REPLY)
_GOODBYE: Final = control_frame(Kind.GOODBYE, None)
_pack = REQUEST_HEADER.pack


class Connection(Wire):
    """Requests out, answers in, matched by id."""

    def __init__(
        self,
        address: Address,
        connect_timeout_s: float,
        reconnect_s: float,
        credentials: Credentials,
    ) -> None:
        """Connect and greet.  Raises ``BrokerUnavailable`` and ``AccessDenied``.

        ``reconnect_s`` is how long a broker that went away is looked for; 0: not at all.
        """
        super().__init__(address, reconnect_s > 0)
        self.session = Session()
        #: streams, which know the ids of their own requests
        self.flows: set[Flow] = set()
        #: sends futures' requests again that the broker was too busy for
        self.clock = Clock(self.ended)
        self._connect_timeout_s = connect_timeout_s
        self._reconnect_s = reconnect_s
        self._numbering = threading.Lock()
        self._reader = BackgroundReader(self)
        self._recoveries: list[Recovery] = []
        #: it belongs to the process that was forked from
        self._is_foreign = False
        self._credentials = credentials
        greeting = reach(address, credentials, connect_timeout_s, {})
        try:
            self.session.welcome(greeting.welcome, monotonic())
        except ProtocolError as error:
            greeting.socket.close()
            raise BrokerUnavailable(f"no broker answers at {address}: {error}") from None
        self.install(greeting)
        keep_track(self)

    # ---- connecting ----------------------------------------------------------------------------

    def dial(self) -> Line:
        """A new connection to the broker.  Raises ``OSError`` and ``SecretError``."""
        return connect(self.address, self._credentials, self._connect_timeout_s)

    def greet(self, line: Line) -> Greeting:
        """Introduce ourselves on it.  Raises ``ProtocolError`` and ``OSError``."""
        return greet(line, self.session.hello())

    def recover(self, reason: str) -> None:
        """Look for the broker, in another thread; called by the one who reads."""
        with self._numbering:
            if self.lost is None:
                self._recoveries = [
                    *self._recoveries[-1:],
                    Recovery(self, reason, self._reconnect_s),
                ]

    def renew(self, greeting: Greeting) -> None:
        """Go on with this connection: what is unanswered is sent again.

        Raises ``ProtocolError``, with the connection closed.
        """
        self.take_turn()
        try:
            found = self.session.welcome(greeting.welcome, monotonic())
            old = self.socket
            self.install(greeting)
            old.close()
            self.local.extend(found.answers)
            # `close` has no turn to take
            if not self.ended.is_set():
                self.up()
                with contextlib.suppress(BrokerUnavailable):
                    self.send_locked(b"".join(found.frames))
        except ProtocolError:
            greeting.socket.close()
            raise
        finally:
            self.give_turn()

    # ---- requests ------------------------------------------------------------------------------

    def post(
        self,
        task: str,
        body: bytes,
        sink: Sink,
        *,
        flags: int = 0,
        deadline_ms: int = 0,
        tail: int = 0,
        soon: bool = False,
    ) -> int:
        """Send a request, whose answer goes to ``sink``; returns its id.

        With ``soon`` it may leave with the next ones, and the background thread waits for the
        answer.  Raises ``BrokerUnavailable``, ``UnknownTask`` and ``TooLarge``.
        """
        self.take_turn()
        try:
            session = self.session
            number = session.tasks.get(task)
            if number is None:
                raise unknown_task(task, session.tasks)
            if len(body) > session.frame_bytes_max:
                raise TooLarge(
                    f"{len(body)} bytes of arguments; the limit is {session.frame_bytes_max}"
                )
            if (lost := self.lost) is not None:
                raise type(lost)(str(lost))
            with self._numbering:
                request_id = session.next_id()
            frame = _pack(len(body), _REQUEST, flags, number, request_id, deadline_ms, tail) + body
            session.open[request_id] = (frame, monotonic(), sink)
            self.push(frame, soon)
        finally:
            self.give_turn()
        if self.lost is not None:
            # meanwhile; and all may have been told before this one was there
            self.tell_all()
        elif soon and self._reader.parked:
            self._reader.wake()
        return request_id

    def ask(self, message: dict[str, Any], sink: Sink) -> int:
        """Send a CONTROL; returns its id.  Raises ``BrokerUnavailable``."""
        self.take_turn()
        try:
            if self.lost is not None:
                raise self.failure()
            with self._numbering:
                request_id = self.session.next_id()
            frame = control_frame(Kind.CONTROL, message, request_id)
            self.session.open[request_id] = (frame, monotonic(), sink)
            self.push(frame, False)
        finally:
            self.give_turn()
        return request_id

    def next_ids(self, count: int) -> range:
        """Ids for ``count`` requests, for ``post_many``."""
        with self._numbering:
            session = self.session
            ids = session.next_ids(count)
            session.unborn = [*session.unborn, ids]
            return ids

    def post_many(
        self, made_for: tuple[int, int, dict[str, int]], ids: range, frames: bytes, book: Book
    ) -> None:
        """Send the requests of a stream, which are in its ``book`` by now.

        ``ids`` are from ``next_ids``, ``made_for`` is ``basis`` from before that.  Raises
        ``BrokerUnavailable``.
        """
        self.take_turn()
        try:
            session = self.session
            with self._numbering:
                session.unborn = [each for each in session.unborn if each is not ids]
            generation, number, tasks = made_for
            if generation != session.generation:
                # the broker was another when they were made
                found = session.adopt(number, tasks, ids, book, monotonic())
                self.local.extend(found.answers)
                frames = b"".join(found.frames)
            self._outbox.append(frames)
            self.flush_locked()
        finally:
            self.give_turn()

    def post_again(self, ids: list[tuple[int, int]], book: Book, now: float) -> None:
        """Send requests once more that are finished for the broker; each as ``(id, generation)``.

        Raises ``BrokerUnavailable``.
        """
        self.take_turn()
        try:
            for request_id, generation in ids:
                entry = book.get(request_id)
                # with a new connection it was sent anyway
                if entry is not None and generation == self.session.generation:
                    frame, sent_at, keep = entry
                    deadline_ms = int.from_bytes(frame[16:20], "little")
                    if deadline_ms:
                        passed_ms = int((now - sent_at) * 1000.0)
                        frame = with_deadline(frame, max(1, deadline_ms - passed_ms))
                    book[request_id] = (frame, now, keep)
                    self._outbox.append(frame)
            self.flush_locked()
        finally:
            self.give_turn()

    @property
    def basis(self) -> tuple[int, int, dict[str, int]]:
        """What the frames of requests depend on, for ``post_many``."""
        session = self.session
        return session.generation, session.number, session.tasks

    def add_flow(self, flow: Flow, book: Book) -> None:
        """A stream begins, with a book of its own."""
        with self._numbering:
            self.session.books = [*self.session.books, book]
        self.flows.add(flow)

    def remove_flow(self, flow: Flow, book: Book) -> None:
        """It has ended: what is open in its book is taken back."""
        self.flows.discard(flow)
        self.withdraw(list(book))
        with self._numbering:
            self.session.books = [each for each in self.session.books if each is not book]

    def withdraw(self, ids: list[int]) -> bool:
        """Take requests back, wherever they are; False when all were answered.  Does not wait."""
        frames = [frame for each in ids if (frame := self.session.withdraw(each)) is not None]
        if frames:
            self.push_if_free(b"".join(frames))
        return bool(frames)

    # ---- answers -------------------------------------------------------------------------------

    def dispatch(self, data: bytes) -> None:
        """Hand each whole frame to its sink, and keep what is left.  The caller holds ``reading``.

        A sink may run code of the user's that waits for another answer, and so reads: all frames
        are cut and the rest is put away before the first sink is called.
        """
        frames, rest = cut_frames(data)
        self.keep(rest)
        for request_id, kind, frame in frames:
            self._deliver(request_id, kind, frame)

    def deliver(self, frames: list[bytes]) -> None:
        """Hand over frames that a stream read and that are not its own."""
        for frame in frames:
            self._deliver(int.from_bytes(frame[8:16], "little"), frame[4], frame)

    def _deliver(self, request_id: int, kind: int, frame: bytes) -> None:
        if kind != _REPLY and kind != _CONTROL_REPLY:
            self._take_news(kind, frame)
            return
        entry = self.session.open.pop(request_id, None)
        if entry is not None:
            entry[2](frame)
        elif not any(flow.bring(request_id, frame) for flow in tuple(self.flows)):
            # nobody waits for it any more
            self.session.answered(request_id)

    def _take_news(self, kind: int, frame: bytes) -> None:
        """A frame that is no reply: news of tasks and of durable requests, or a goodbye."""
        body = frame[HEADER_BYTES:]
        if kind == Kind.TASKS:
            self.take_turn()
            try:
                found = self.session.tasks_changed(decode_body(body), monotonic())
                self.local.extend(found.answers)
                if found.frames:
                    with contextlib.suppress(BrokerUnavailable):
                        self.send_locked(b"".join(found.frames))
            finally:
                self.give_turn()
        elif kind == Kind.WORKERS:
            news = decode_body(body)
            self.session.workers = news["workers"]
            self.session.frame_bytes_max = news["frame_bytes_max"]
        elif kind == Kind.ACCEPTED:
            take_accepted(self.session, frame)
        elif kind == Kind.GOODBYE:
            raise self.lose(str(decode_body(body)))

    def follow(self, change: int) -> None:
        """One more or one less thread waits here for what another one reads."""
        self._reader.follow(change)

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
                self.follow(1)
                try:
                    answer.wait(None if until is None else max(0.0, until - monotonic()))
                finally:
                    self.follow(-1)
        return True

    # ---- the end -------------------------------------------------------------------------------

    def tell_all(self) -> None:
        """Tell all who wait for an answer that it will not come."""
        sinks = self.session.open
        while sinks:
            try:
                _, entry = sinks.popitem()
            except KeyError:
                break  # another thread is telling them, too
            entry[2](None)
        for flow in tuple(self.flows):
            flow.bring(0, None)
        self.clock.wake()

    def close(self) -> None:
        """Say goodbye and close; whatever is unanswered is given up, here and at the broker."""
        if self._is_foreign:
            return
        self.part()
        self.tell_all()
        with self._numbering:
            recoveries, self._recoveries = self._recoveries, []
        for recovery in recoveries:
            recovery.stop()
        self.clock.join()
        self._reader.stop()
        self.take_turn()
        try:
            self.discard()
        finally:
            self.give_turn()

    def part(self) -> None:
        """Tell the broker that we leave for good, so that it cancels what is unanswered."""
        was_lost = self.lost is not None
        self.mark_lost("this client was closed")
        if not was_lost and not self.down:
            with contextlib.suppress(OSError, LBError):
                if not self.send_last(_GOODBYE):
                    # in the middle of a frame: it has to be said elsewhere
                    line = self.dial()
                    line.socket.settimeout(GOODBYE_S)
                    with self.greet(line).socket as aside:
                        aside.sendall(_GOODBYE)
        self.shut()

    def disown(self) -> None:
        """In a process that was forked: leave everything to the one that it was forked from."""
        self._is_foreign = True
        self.renounce("this client belongs to the process that was forked; make another one here")
        self._numbering = threading.Lock()
        self._reader = BackgroundReader(self)
        self._recoveries = []
        self.clock = Clock(self.ended)
        self.session.open.clear()
        self.flows.clear()
