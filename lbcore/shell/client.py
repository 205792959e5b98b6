"""The Python client: call a task, submit it for a future, map it, or stream a great many.

    from lbcore import Client

    with Client("127.0.0.1", 8000) as client:
        client.call("sort", size=1000)
        future = client.submit("sort", size=1000)
        for value in client.map("primes", [10, 100, 1000]):
            ...

A client has one connection and may be shared by threads.  All errors are ``lbcore.LBError``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from time import monotonic
from types import TracebackType
from typing import Any, Final

import msgspec

from lbcore.core.errors import DeadlineExceeded, Status, TooLarge, error_from_wire
from lbcore.core.frames import HEADER_BYTES, Kind, control_frame, decode_body, request_frame
from lbcore.core.topology import DEFAULT_BROKER_PORT, DEFAULT_HOST, Address, Topology

from .client_calls import deadline_ms_of, encode_arguments, reply_error, unknown_task
from .client_connection import Connection
from .client_parts import Answer
from .client_stream import Reply, stream
from .state import broker_address

#: a broker answers a deadline itself; a client that hears nothing waits this much longer
DEADLINE_GRACE_S: Final = 2.0
#: no operating system waits longer at once
WAIT_MAX_S: Final = 1e6
CONTROL_TIMEOUT_S: Final = 10.0

_decode = msgspec.msgpack.Decoder().decode


class Client:
    """A connection to a running system."""

    def __init__(
        self,
        host: str = DEFAULT_HOST,
        port: int = DEFAULT_BROKER_PORT,
        *,
        path: str | None = None,
        connect_timeout: float = 5.0,
    ) -> None:
        """Connect to the broker at ``host:port``, or at the Unix socket ``path``.

        ``connect_timeout`` is in seconds.  Raises ``BrokerUnavailable``.
        """
        address = Address(host=host, port=port) if path is None else Address(path=path)
        self._connection = Connection(address, connect_timeout)

    @classmethod
    def from_topology(cls, topology: Topology, *, connect_timeout: float = 5.0) -> Client:
        """Connect to the running system of that topology.  Raises ``BrokerUnavailable``."""
        address = broker_address(topology)
        return cls(address.host, address.port, path=address.path, connect_timeout=connect_timeout)

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
        """Close the connection; unanswered futures fail with ``BrokerUnavailable``."""
        self._connection.close()

    # ---- tasks ---------------------------------------------------------------------------------

    def call(self, task: str, /, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Run a task and return its result.

        ``timeout`` seconds is the request's deadline.  Raises ``TaskError`` when the task raised,
        another ``RequestError`` when it was not run, ``BrokerUnavailable`` without a broker.
        """
        connection = self._connection
        request_id = connection.next_id()
        frame = self._frame(request_id, task, args, kwargs, timeout)
        answer = Answer()
        connection.sinks[request_id] = answer.set
        connection.send(frame)
        until = None
        if timeout is not None and timeout < WAIT_MAX_S:
            until = monotonic() + timeout + DEADLINE_GRACE_S
        if not connection.wait(answer, until):
            connection.sinks.pop(request_id, None)
            raise DeadlineExceeded(f"no answer within {timeout} s, and no word from the broker")
        if answer.frame is None:
            raise connection.failure()
        return _value_of(answer.frame)

    def submit(
        self, task: str, /, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Future[Any]:
        """Start a task and return a future for its result; errors as for ``call``."""
        connection = self._connection
        request_id = connection.next_id()
        frame = self._frame(request_id, task, args, kwargs, timeout)
        future: Future[Any] = Future()

        def settle(answer: bytes | None) -> None:
            try:
                try:
                    if answer is None:
                        raise connection.failure()
                    value = _value_of(answer)
                except Exception as error:
                    future.set_exception(error)
                else:
                    future.set_result(value)
            except InvalidStateError:
                # cancelled meanwhile: it takes no result, but whoever waits for it has to know
                if future.cancelled():
                    future.set_running_or_notify_cancel()

        connection.expect(request_id, settle)
        connection.send_soon(frame)
        return future

    def map(
        self,
        task: str,
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        window: int = 1000,
    ) -> Iterator[Any]:
        """Run a task on each item, as ``map(function, *iterables)``; results in order.

        At most ``window`` requests are in flight, and the iterables are read no further than that:
        they may be endless.  Raises the first error, when its turn comes.
        """
        calls = ((task, list(items)) for items in zip(*iterables, strict=False))
        held: dict[int, Reply] = {}
        turn = 0
        for reply in stream(self._connection, calls, window=window, timeout=timeout, ordered=True):
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
        explain: bool = False,
        rate: float | None = None,
    ) -> Iterator[Reply]:
        """Run many requests; yields a ``Reply`` for each, in the order in which they finish.

        A call is ``(task, arguments)``: a mapping of keyword arguments, a sequence of positional
        ones, or None.  ``calls`` is read as answers come back, so that at most ``window`` are in
        flight; with ``rate`` not faster than so many a second.  Errors are in the replies.
        """
        return stream(
            self._connection, calls, window=window, timeout=timeout, explain=explain, rate=rate
        )

    def _frame(
        self,
        request_id: int,
        task: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> bytes:
        number = self._connection.tasks.get(task)
        if number is None:
            raise unknown_task(task, self._connection.tasks)
        body = encode_arguments(args, kwargs)
        if len(body) > self._connection.frame_bytes_max:
            raise TooLarge(
                f"{len(body)} bytes of arguments; the limit is {self._connection.frame_bytes_max}"
            )
        deadline_ms = 0 if timeout is None else deadline_ms_of(timeout)
        return request_frame(request_id, number, body, deadline_ms=deadline_ms)

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

    def _control(self, message: dict[str, Any]) -> Any:
        connection = self._connection
        request_id = connection.next_id()
        answer = Answer()
        connection.sinks[request_id] = answer.set
        connection.send(control_frame(Kind.CONTROL, message, request_id))
        until = monotonic() + CONTROL_TIMEOUT_S
        if not connection.wait(answer, until):
            connection.sinks.pop(request_id, None)
            raise DeadlineExceeded(f"the broker did not answer within {CONTROL_TIMEOUT_S:.0f} s")
        if answer.frame is None:
            raise connection.failure()
        reply = decode_body(answer.frame[HEADER_BYTES:])
        if "error" in reply:
            raise error_from_wire(Status.BAD_REQUEST, reply["error"])
        return reply["ok"]


def _value_of(frame: bytes) -> Any:
    """The value in a reply frame; raises the error that it carries."""
    status = frame[5]
    if not status:
        return _decode(frame[HEADER_BYTES:])
    raise reply_error(status, frame[HEADER_BYTES:])
