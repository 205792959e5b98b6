"""How a command reaches the broker, and what it says when there is none.

The commands are written against ``BrokerClient``, the part of ``lbcore.Client`` that they use, so
that their tests need no broker.  Called by send, status, tasks, explain and demo.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import click

from lbcore.core.errors import AccessDenied, BrokerUnavailable, DeadlineExceeded, RequestError
from lbcore.core.topology import DEFAULT_BROKER_PORT, DEFAULT_HOST, Address

from .options import CONFIG_DEFAULT, load_running, program_name

if TYPE_CHECKING:
    from lbcore.core.topology import Topology

Call = tuple[str, Mapping[str, Any] | None]
#: one entry of ``explain``, ``tasks`` or the whole of ``status``, as it came over the wire
Facts = dict[str, Any]


class Reply(Protocol):
    """One answered request, as ``Client.stream`` yields it."""

    @property
    def index(self) -> int:
        """Position of the request among the calls."""

    @property
    def status(self) -> int:
        """0 for a result; otherwise the number of the error."""

    @property
    def worker(self) -> str:
        """Name of the worker that ran it; empty when none did."""

    @property
    def service_s(self) -> float:
        """Wall seconds that the worker spent on it."""

    @property
    def latency_s(self) -> float:
        """Seconds from sending it to its answer."""

    @property
    def body(self) -> bytes:
        """The result as msgpack."""

    @property
    def request_id(self) -> int:
        """What ``explain`` and the logs know it by."""

    def value(self) -> Any:
        """The decoded result; raises the error instead."""

    def error(self) -> RequestError | None:
        """The error; None for a result."""


class BrokerClient(Protocol):
    """What the commands need of a client."""

    def stream(
        self,
        calls: Iterable[Call],
        *,
        window: int = 1000,
        timeout: float | None = None,
        priority: int = 0,
        retry_busy: float | bool | None = None,
        explain: bool = False,
        rate: float | None = None,
        durable: bool = False,
    ) -> Iterator[Reply]:
        """Send all calls, at most ``window`` at once; yield replies as they arrive."""

    def enqueue(
        self,
        task: str,
        /,
        *args: Any,
        timeout: float | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> int:
        """Hand over a durable request; its id once it is accepted."""

    def result(self, request_id: int, timeout: float | None = None) -> Any:
        """The result of a durable request, waiting for it if need be."""

    def status(self) -> Facts:
        """What ``status --json`` prints."""

    def tasks(self) -> list[Facts]:
        """The tasks that can be requested."""

    def explain(self, ids: Sequence[int] | None = None, *, last: int = 10) -> list[Facts]:
        """The last choices, newest first, or those for the given request ids."""

    def quarantine(self, action: str = "ls", wanted: int | str | None = None) -> Any:
        """What kills workers: list it, show, retry or drop one."""

    def call(self, task: str, /, *arguments: Any, **keywords: Any) -> Any:
        """The result of one request; raises its error."""

    def close(self) -> None:
        """Leave the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The broker that a command means: that of a topology, or the one at an address."""

    config: str = CONFIG_DEFAULT
    topology: Topology | None = None
    address: Address | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"topology {self.topology.name!r}" if self.topology else "a broker"

    @property
    def start_command(self) -> str:
        """The command line that starts it, as a person would type it."""
        choice = "" if self.config == CONFIG_DEFAULT else f" -c {shlex.quote(self.config)}"
        return f"{program_name()} up{choice}"


def find_target(
    config: str,
    overrides: Sequence[str],
    host: str | None = None,
    port: int | None = None,
    path: str | None = None,
) -> Target:
    """The broker meant by a command line.

    Raises ``ConfigError`` for an unusable topology, ``click.UsageError`` for options that name two
    different brokers.
    """
    if host is None and port is None and path is None:
        return Target(config=config, topology=load_running(config, overrides))
    if overrides or config != CONFIG_DEFAULT:
        raise click.UsageError("give either --config/--set, or --host/--port/--path")
    if path is not None:
        if host is not None or port is not None:
            raise click.UsageError("give either --path, or --host and --port")
        return Target(address=Address(path=path))
    return Target(
        address=Address(host=host or DEFAULT_HOST, port=port or DEFAULT_BROKER_PORT),
    )


@contextmanager
def connect(
    target: Target, timeout_s: float = 5.0, *, admin: bool = False
) -> Iterator[BrokerClient]:
    """A connection to the broker; ``admin`` for what changes the system for others.

    Raises ``BrokerUnavailable``, with the command that starts it, when nobody is there, and when
    somebody is but does not answer.
    """
    from lbcore.shell.client import Client

    client: BrokerClient
    try:
        if target.topology is not None:
            client = Client.from_topology(target.topology, connect_timeout=timeout_s, admin=admin)
        else:
            address = target.address or Address(port=DEFAULT_BROKER_PORT)
            client = Client(
                address.host,
                address.port,
                path=address.path,
                connect_timeout=timeout_s,
                admin=admin,
            )
    except AccessDenied:
        raise
    except BrokerUnavailable as error:
        raise BrokerUnavailable(describe_absence(target, error)) from None
    try:
        yield client
    except DeadlineExceeded as error:
        # a request's own deadline is in its reply; this is a broker that does not answer
        raise BrokerUnavailable(str(error)) from None
    finally:
        client.close()


def describe_absence(target: Target, error: BrokerUnavailable) -> str:
    """One line: is it not running, or running without its broker, and what to do."""
    if target.topology is None:
        return f"no broker answers at {target.address}; start one with `{program_name()} up`"
    from lbcore.shell.state import broker_address, read_state

    state = read_state(target.topology)
    if state is None:
        return f"{target.name} is not running; start it with `{target.start_command}`"
    return (
        f"the broker of {target.name} does not answer at {broker_address(target.topology)} "
        f"(its supervisor, pid {state.pid}, says {state.broker.state}); "
        f"see `{program_name()} logs broker`"
    )
