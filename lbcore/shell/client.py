"""The Python client: call a task, submit it for a future, map it, or stream a great many.

    from lbcore import Client

    with Client("127.0.0.1", 8000) as client:
        client.call("sort", size=1000)
        future = client.submit("sort", size=1000)
        for value in client.map("primes", [10, 100, 1000]):
            ...

A client has one connection and may be shared by threads; when it breaks, it connects again and
sends once more what is unanswered.  All errors are ``lbcore.LBError``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Final

from lbcore.core.errors import DeadlineExceeded, Status, error_of_kind
from lbcore.core.frames import HEADER_BYTES, Flag, Kind, decode_body
from lbcore.core.topology import DEFAULT_BROKER_PORT, DEFAULT_HOST, Address, Topology

from .client_accepted import wait_for_result
from .client_busy import Patience
from .client_calls import Options, deadline_ms_of, encode_arguments, options_of, value_of
from .client_connection import Connection
from .client_future import PatientFuture, RequestFuture
from .client_parts import Answer
from .client_stream import Reply, stream
from .secrets import SECRET_NAME, Credentials
from .state import broker_address, state_folder

#: a broker answers a deadline itself; a client that hears nothing waits this much longer
DEADLINE_GRACE_S: Final = 2.0
#: no operating system waits longer at once
WAIT_MAX_S: Final = 1e6
CONTROL_TIMEOUT_S: Final = 10.0
#: how long a broker that went away is looked for
RECONNECT_S: Final = 30.0


class Client:
    """A connection to a running system."""

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_BROKER_PORT,
        *,
        path: str | None = None,
        connect_timeout: float = 5.0,
        reconnect: float = RECONNECT_S,
        retry_busy: float | bool = False,
        key_file: str | None = None,
        cafile: str | None = None,
        admin: bool = False,
        credentials: Credentials | None = None,
    ) -> None:
        """Connect to the broker at ``host:port``, or at the Unix socket ``path``.

        ``connect_timeout`` is in seconds, and so is ``reconnect``: how long a broker that went away
        is looked for before everything fails with ``BrokerUnavailable``; 0 for not at all.
        ``retry_busy`` is for all requests what it is for one in ``call``.  The key of a system of
        the same user is found by itself; ``key_file`` has that of another.  ``cafile`` has
        certificates by which the broker's must be signed.  ``admin`` asks for all rights.  Raises
        ``BrokerUnavailable``, and ``AccessDenied``, which is one, when there is no key that fits.
        """
        address = Address(host=host, port=port) if path is None else Address(path=path)
        role = "admin" if admin else "client"
        given = credentials or Credentials(role=role, key_file=key_file, cafile=cafile)
        #: what a request has when nothing is said about it
        self._usual = options_of(None, 0, retry_busy)
        self._connection = Connection(address, connect_timeout, reconnect, given)

    @classmethod
    def from_topology(
        cls,
        topology: Topology,
        *,
        connect_timeout: float = 5.0,
        reconnect: float = RECONNECT_S,
        retry_busy: float | bool = False,
        admin: bool = False,
    ) -> Client:
        """Connect to the running system of that topology.  Raises ``BrokerUnavailable``."""
        address = broker_address(topology)
        return cls(
            address.host,
            address.port,
            path=address.path,
            connect_timeout=connect_timeout,
            reconnect=reconnect,
            retry_busy=retry_busy,
            credentials=Credentials(
                role="admin" if admin else "client",
                secret=state_folder(topology) / SECRET_NAME,
                tls=topology.tls is not None,
            ),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; unanswered futures fail with ``BrokerUnavailable``.

        The broker takes back what is unanswered.
        """
        self._connection.close()

    # ---- tasks ---------------------------------------------------------------------------------

    def call(
        self,
        task: str,
        /,
        *args: Any,
        timeout: float | None = None,
        priority: int = 0,
        retry_busy: float | bool | None = None,
        durable: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Run a task and return its result.

        ``timeout`` seconds is the request's deadline.  ``priority`` is from -10 to 10, bigger is
        sooner.  With ``retry_busy`` it is sent again for so many seconds (True: 60) while the queue
        is full.  A ``durable`` one is written down before it is accepted, and finished whatever
        dies.  Raises ``TaskError`` when the task raised, another ``RequestError`` when it was not
        run, ``BrokerUnavailable`` without a broker.
        """
        options = self._options(timeout, priority, retry_busy, Flag.DURABLE if durable else 0)
        body = encode_arguments(args, kwargs)
        if not options.retry_busy_s:
            return value_of(self._answer(task, body, options, timeout))
        now = monotonic()
        until = math.inf if timeout is None else now + timeout
        patience = Patience(now, min(until, now + options.retry_busy_s))
        while True:
            frame = self._answer(task, body, options, timeout)
            due = None
            if frame[5] == Status.BUSY:
                due = patience.next_at(frame[HEADER_BYTES:], monotonic())
            if due is None:
                return value_of(frame)
            self._connection.ended.wait(due - monotonic())
            if timeout is not None:
                timeout = max(0.001, until - monotonic())
                options = options._replace(deadline_ms=deadline_ms_of(timeout))

    def _answer(self, task: str, body: bytes, options: Options, timeout: float | None) -> bytes:
        """The frame that answers one request."""
        connection = self._connection
        answer = Answer()
        request_id = connection.post(
            task,
            body,
            answer.set,
            flags=options.flags,
            deadline_ms=options.deadline_ms,
            tail=options.tail,
        )
        until = None
        if timeout is not None and timeout < WAIT_MAX_S:
            until = monotonic() + timeout + DEADLINE_GRACE_S
        if not connection.wait(answer, until):
            connection.withdraw([request_id])
            raise DeadlineExceeded(f"no answer within {timeout} s, and no word from the broker")
        if answer.frame is None:
            raise connection.failure()
        return answer.frame

    def submit(
        self,
        task: str,
        /,
        *args: Any,
        timeout: float | None = None,
        priority: int = 0,
        retry_busy: float | bool | None = None,
        durable: bool = False,
        **kwargs: Any,
    ) -> RequestFuture:
        """Start a task and return a future for its result; options and errors as for ``call``.

        ``cancel`` of the future takes the request back: out of the queue, or from the worker.  With
        its ``request_id`` the result of a ``durable`` one can be fetched again later.
        """
        options = self._options(timeout, priority, retry_busy, Flag.DURABLE if durable else 0)
        body = encode_arguments(args, kwargs)
        connection = self._connection
        if options.retry_busy_s:
            future: RequestFuture = PatientFuture(connection, task, body, options)
        else:
            future = RequestFuture(connection)
        future.request_id = connection.post(
            task,
            body,
            future.settle,
            flags=options.flags,
            deadline_ms=options.deadline_ms,
            tail=options.tail,
            soon=True,
        )
        return future

    def enqueue(
        self,
        task: str,
        /,
        *args: Any,
        timeout: float | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> int:
        """Hand over a durable request and leave it: returns its id once it is accepted.

        It is finished whoever dies or leaves; ``result`` fetches what came of it.  ``timeout`` and
        ``priority`` as for ``call``.  Raises a ``RequestError`` when it was not accepted.
        """
        options = self._options(timeout, priority, None, Flag.DURABLE | Flag.DETACHED)
        answer = self._answer(task, encode_arguments(args, kwargs), options, None)
        if answer[4] != Kind.ACCEPTED:
            value_of(answer)
        return int.from_bytes(answer[8:16], "little")

    def result(self, request_id: int, timeout: float | None = None) -> Any:
        """The result of a durable request of any client, waiting for it if need be.

        Raises what ``call`` would, ``DeadlineExceeded`` when there is no result within ``timeout``
        seconds, ``BadRequest`` when no such request is known, or its result is not kept any more.
        """
        return value_of(wait_for_result(self._control, request_id, timeout))

    def map(
        self,
        task: str,
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        priority: int = 0,
        retry_busy: float | bool | None = None,
        window: int = 1000,
    ) -> Iterator[Any]:
        """Run a task on each item, as ``map(function, *iterables)``; results in order.

        At most ``window`` requests are in flight, and the iterables are read no further than that:
        they may be endless.  Raises the first error, when its turn comes; what is in flight then is
        taken back, as it is when the iterator is closed.
        """
        options = self._options(timeout, priority, retry_busy)
        calls = ((task, list(items)) for items in zip(*iterables, strict=False))
        held: dict[int, Reply] = {}
        turn = 0
        replies = stream(self._connection, calls, options, window=window, ordered=True)
        for reply in replies:
            held[reply.index] = reply
            while turn in held:
                yield held.pop(turn).value()
                turn += 1

    def stream(
        self,
        calls: Iterable[tuple[str, Mapping[str, Any] | Sequence[Any] | None]],
        *,
        window: int = 1000,
        timeout: float | None = None,
        priority: int = 0,
        retry_busy: float | bool | None = None,
        explain: bool = False,
        rate: float | None = None,
        durable: bool = False,
    ) -> Iterator[Reply]:
        """Run many requests; yields a ``Reply`` for each, in the order in which they finish.

        A call is ``(task, arguments)``: a mapping of keyword arguments, a sequence of positional
        ones, or None.  ``calls`` is read as answers come back, so that at most ``window`` are in
        flight; with ``rate`` not faster than so many a second.  Errors are in the replies.  What
        is in flight when the iterator is closed is taken back.
        """
        flags = Flag.EXPLAIN * explain | Flag.DURABLE * durable
        options = self._options(timeout, priority, retry_busy, flags)
        return stream(self._connection, calls, options, window=window, rate=rate)

    def _options(
        self, timeout: float | None, priority: int, retry_busy: float | bool | None, flags: int = 0
    ) -> Options:
        if timeout is None and not priority and retry_busy is None and not flags:
            return self._usual
        patience_s = self._usual.retry_busy_s if retry_busy is None else retry_busy
        return options_of(timeout, priority, patience_s, flags)

    # ---- the system ----------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The state of broker and workers, as ``status --json`` prints it."""
        return dict(self._control({"op": "status"}))

    def tasks(self) -> list[dict[str, Any]]:
        """Every task: signature, doc, weight, what was learned of its cost."""
        return list(self._control({"op": "tasks"}))

    def explain(self, ids: Sequence[int] | None = None, *, last: int = 10) -> list[dict[str, Any]]:
        """Why workers were chosen: for these request ids, or for the ``last`` recorded choices."""
        message: dict[str, Any] = {"op": "explain", "last": last}
        if ids is not None:
            message["ids"] = list(ids)
        return list(self._control(message))

    def quarantine(self, action: str = "ls", wanted: int | str | None = None) -> Any:
        """What kills workers: ``ls`` lists it; ``show``, ``retry``, ``drop`` take a request's id.

        ``retry`` and ``drop`` take a task's name, too.  ``retry`` of a request returns its task and
        body, and leaves it to the caller to send them.  Needs the rights of an admin.
        """
        return self._control({"op": "quarantine", "action": action, "id": wanted})

    def _control(self, message: dict[str, Any]) -> Any:
        connection = self._connection
        answer = Answer()
        request_id = connection.ask(message, answer.set)
        if not connection.wait(answer, monotonic() + CONTROL_TIMEOUT_S):
            connection.session.answered(request_id)
            raise DeadlineExceeded(f"the broker did not answer within {CONTROL_TIMEOUT_S:.0f} s")
        if answer.frame is None:
            raise connection.failure()
        reply = decode_body(answer.frame[HEADER_BYTES:])
        if "error" in reply:
            raise error_of_kind(reply["error"])
        return reply["ok"]
