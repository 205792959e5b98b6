"""Binds every listening socket of a topology before anything is forked.

A port in use is thus one clear error before anything runs, and a socket outlives the process that
serves it.  The supervisor holds these sockets until the end; children inherit theirs.  Never
accepts a connection.  Called by ``cli/up.py``.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import stat
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from lbcore.core.errors import LBError
from lbcore.core.topology import Address, Topology

from .state import base_folder

BROKER: Final = "broker"
#: connections that may wait while a broker or worker is being restarted
_BACKLOG: Final = 4096
#: what Linux allows for the path of a Unix socket, without the closing zero
_UNIX_PATH_BYTES_MAX: Final = 107
_COMMAND_LINE_MAX: Final = 60

#: the line of a key, or of the section around it, in a YAML file: ``line_of(path, key_path)``
LineOf = Callable[[str, Sequence[str | int]], int | None]


class BindError(LBError):
    """Some address of the topology cannot be listened on; one paragraph for each."""

    exit_code = 3


class Listeners:
    """The bound sockets by process name, and the first topology with the addresses they have."""

    def __init__(self, topology: Topology, line_of: LineOf | None = None) -> None:
        """Bind all.  Raises ``BindError`` that names every address that cannot be had."""
        self.sockets: dict[str, socket.socket] = {}
        #: the addresses as they were written, by process name
        self._wanted: dict[str, Address] = {}
        self._paths: dict[str, os.stat_result] = {}
        self._line_of = line_of
        self.install(self.prepare(topology), topology)
        self.topology = self.bound(topology)

    def prepare(self, topology: Topology, heirs: Collection[str] = ()) -> dict[str, socket.socket]:
        """Bind what this topology needs and what is not there yet; ``install`` puts it in place.

        ``heirs`` get their sockets later, from others.  Raises ``BindError``; nothing is changed.
        """
        addresses = {BROKER: topology.broker, **{w.name: w.address for w in topology.workers}}
        keys: dict[str, tuple[str | int, ...]] = {
            BROKER: (BROKER,),
            **{worker.name: ("workers", i) for i, worker in enumerate(topology.workers)},
        }
        needed = [
            name
            for name, address in addresses.items()
            if self._wanted.get(name) != address and name not in heirs
        ]
        fresh: dict[str, socket.socket] = {}
        problems: list[str] = []
        # a port given out freely must not be one that another process of ours names
        for name in sorted(needed, key=lambda name: _is_free_choice(addresses[name])):
            try:
                fresh[name] = self._bind(base_folder(topology), addresses[name])
            except _Unavailable as error:
                where = _yaml_place(topology.source, keys[name], error.key, self._line_of)
                problems.append(f"{name} cannot listen on {addresses[name]}: {error}\n{where}")
        if problems:
            self.discard(fresh)
            raise BindError("\n".join(problems))
        return fresh

    def discard(self, fresh: Mapping[str, socket.socket]) -> None:
        """Give up what ``prepare`` bound."""
        for bound in fresh.values():
            self._close(bound)

    def install(self, fresh: Mapping[str, socket.socket], topology: Topology) -> None:
        """Use what ``prepare`` bound; what it replaces is closed here."""
        addresses = {BROKER: topology.broker, **{w.name: w.address for w in topology.workers}}
        for name, bound in fresh.items():
            if name in self.sockets:
                self._close(self.sockets[name])
            self.sockets[name], self._wanted[name] = bound, addresses[name]

    def hand_over(self, owner: str, heir: str) -> None:
        """One that is gone leaves its socket, with those who wait there, to another."""
        self.sockets[heir], self._wanted[heir] = self.sockets.pop(owner), self._wanted.pop(owner)

    def drop(self, name: str) -> None:
        """Nobody serves this any more."""
        del self._wanted[name]
        self._close(self.sockets.pop(name))

    def bound(self, topology: Topology) -> Topology:
        """The topology with the addresses that its processes really have."""
        return replace(
            topology,
            broker=_bound_address(self.sockets[BROKER]),
            workers=tuple(
                replace(worker, address=_bound_address(self.sockets[worker.name]))
                for worker in topology.workers
                if worker.name in self.sockets
            ),
        )

    def _close(self, bound: socket.socket) -> None:
        """Stop listening here; the file of a Unix socket that is still ours goes with it."""
        path = bound.getsockname() if bound.family == socket.AF_UNIX else None
        bound.close()
        if path is not None:
            self._unlink(path)

    def _unlink(self, path: str) -> None:
        made = self._paths.pop(path, None)
        with suppress(FileNotFoundError):
            if made is not None and os.path.samestat(os.stat(path), made):
                os.unlink(path)

    def _bind(self, base: Path, address: Address) -> socket.socket:
        if address.path is None:
            return _bind_tcp(address)
        path = os.path.abspath(base / address.path)
        bound = _bind_unix(path)
        self._paths[path] = os.stat(path)
        return bound

    def release(self) -> None:
        """Close this process's copies; whoever else inherited them goes on listening."""
        for bound in self.sockets.values():
            bound.close()

    def close(self) -> None:
        """Stop listening, and remove the files of Unix sockets that are still ours."""
        self.release()
        for path in list(self._paths):
            self._unlink(path)


class _Unavailable(Exception):
    """Why one address cannot be had, and which key of it is to be changed."""

    def __init__(self, text: str, key: str) -> None:
        super().__init__(text)
        self.key = key


def _is_free_choice(address: Address) -> bool:
    return address.path is None and address.port == 0


def _bound_address(bound: socket.socket) -> Address:
    name = bound.getsockname()
    if bound.family == socket.AF_UNIX:
        return Address(path=name)
    return Address(host=name[0], port=name[1])


def _bind_tcp(address: Address) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError):
        raise _Unavailable(f"no such host: {address.host!r}", "host") from None
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(where)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise _explain_tcp(address, error) from None
    return bound


def _explain_tcp(address: Address, error: OSError) -> _Unavailable:
    match error.errno:
        case errno.EADDRINUSE:
            holder = holder_of_port(address.port)
            return _Unavailable(f"port {address.port} is in use\n    by {holder}", "port")
        case errno.EACCES:
            return _Unavailable(f"port {address.port} needs rights you do not have", "port")
        case errno.EADDRNOTAVAIL:
            return _Unavailable("this machine does not have that address", "host")
        case _:
            return _Unavailable(error.strerror or str(error), "port")


def _bind_unix(path: str) -> socket.socket:
    if len(os.fsencode(path)) > _UNIX_PATH_BYTES_MAX:
        limit = f"the path is longer than {_UNIX_PATH_BYTES_MAX} bytes, the system's limit"
        raise _Unavailable(limit, "path")
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # nobody may connect between bind and chmod, so the file is born private
    umask = os.umask(0o177)
    try:
        bound.bind(path)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        reason = "no such folder" if error.errno == errno.ENOENT else error.strerror
        raise _Unavailable(f"{reason}", "path") from None
    finally:
        os.umask(umask)
    return bound


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens on any more; anything else is not ours to remove."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise _Unavailable("a file that is not a socket is in the way", "path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            try:
                os.unlink(path)
            except OSError as error:
                raise _Unavailable(f"stale and not removable: {error.strerror}", "path") from None
            return
        except OSError:
            pass  # it answers, or it is not ours to ask: in use either way
    raise _Unavailable(f"the socket is in use\n    by {_holder_of_path(path)}", "path")


def holder_of_port(port: int) -> str:
    """The process that listens on a TCP port: pid, name and command line, as far as visible."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return _HIDDEN
    return _describe_holder(
        [
            each.pid
            for each in connections
            if each.laddr and each.laddr.port == port and each.status == psutil.CONN_LISTEN
        ]
    )


def _holder_of_path(path: str) -> str:
    import psutil

    try:
        connections = psutil.net_connections("unix")
    except (psutil.Error, OSError):
        return _HIDDEN
    return _describe_holder([each.pid for each in connections if str(each.laddr) == path])


_HIDDEN: Final = "a process that you have no rights to see (try `sudo ss -ltnp`)"


def _describe_holder(pids: Sequence[int | None]) -> str:
    import psutil

    # a listening socket is often shared by a parent and its children: the oldest is the one
    for pid in sorted({pid for pid in pids if pid is not None}):
        try:
            process = psutil.Process(pid)
            name, command = process.name(), shlex.join(process.cmdline())
        except psutil.Error:
            continue
        if len(command) > _COMMAND_LINE_MAX:
            command = command[: _COMMAND_LINE_MAX - 3] + "..."
        return f"pid {pid} ({name}): {command}"
    return _HIDDEN


def _yaml_place(source: str, owner: tuple[str | int, ...], key: str, line_of: LineOf | None) -> str:
    """Which key to change, on which line of which file."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in (*owner, key))
    name = name.removeprefix(".")
    file = os.path.relpath(source) if source else "the topology"
    line = None
    if line_of is not None and source:
        line = line_of(source, (*owner, key))
    place = f"line {line} of {file}" if line else file
    return f"    change {name} in {place}"
