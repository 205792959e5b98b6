"""The state folder beside the YAML: who runs this topology, and where its processes are.

``.lb/<name>/lock`` is held (flock) by the supervisor as long as it lives, so any death frees it;
``.lb/<name>/supervisor.json`` is replaced whole on each change.  The supervisor writes through
``StateFolder``; ``send``, ``status``, ``down`` and ``logs`` only read, with ``read_state`` and
``broker_address``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from lbcore.core.errors import LBError
from lbcore.core.topology import DEFAULT_HOST, Address, Topology

from .secrets import (
    SECRET_NAME,
    SecretError,
    make_secret,
    publish,
    runtime_folder,
    withdraw,
)

FOLDER_NAME: Final = ".lb"
STATE_NAME: Final = "supervisor.json"
LOCK_NAME: Final = "lock"
#: what runs, as it is wanted now: the file may say something else, or nothing that can be read
TOPOLOGY_NAME: Final = "topology.json"
#: where the supervisor takes requests for changes
CONTROL_NAME: Final = "control.sock"
#: the file of durable requests
STORE_NAME: Final = "durable.db"
#: a reader holds the lock for microseconds; whoever holds it longer is a supervisor
_LOCK_PATIENCE_S: Final = 0.2
_LOCK_PAUSE_S: Final = 0.005


class ProcessState(msgspec.Struct, frozen=True, kw_only=True):
    """One child of the supervisor."""

    name: str
    #: None while there is no process
    pid: int | None
    address: str
    #: a ``ChildState``
    state: str
    restarts: int
    #: absolute path of its log file
    log: str


class SystemState(msgspec.Struct, frozen=True, kw_only=True):
    """The running system as its supervisor last wrote it down."""

    #: the supervisor's
    pid: int
    #: unix time
    started_at: float
    #: as psutil gives it: with the pid it names one process for ever
    create_time: float
    name: str
    #: absolute path of the YAML
    config: str
    #: a ``ChildState``
    state: str
    broker: ProcessState
    workers: list[ProcessState]
    #: what became of the last change of the topology; None before the first
    last_change: dict[str, Any] | None = None


class AlreadyRunning(LBError):
    """A supervisor of the same topology is alive."""

    exit_code = 4


class StateError(LBError):
    """The state folder cannot be made or written."""

    exit_code = 3


def base_folder(topology: Topology) -> Path:
    """The folder that relative paths of the topology start from."""
    return Path(topology.source).parent if topology.source else Path.cwd()


def log_folder(topology: Topology) -> Path:
    """The absolute folder of the log files."""
    return (base_folder(topology) / topology.logs.folder).absolute()


def state_folder(topology: Topology) -> Path:
    """Where this topology's state is kept; it need not exist."""
    return base_folder(topology).absolute() / FOLDER_NAME / topology.name


def store_folder(topology: Topology) -> Path:
    """Where the durable requests of a topology are; it need not exist."""
    return base_folder(topology).absolute() / topology.durability.folder / topology.name


def keeps_secret(topology: Topology) -> bool:
    """Whether the secret outlives the system: clients come back to what the one before stored."""
    is_durable = topology.durability.level != "memory"
    return is_durable or (store_folder(topology) / STORE_NAME).exists()


def read_state(topology: Topology) -> SystemState | None:
    """What the live supervisor of this topology wrote last; None when there is none."""
    if not is_locked(topology):
        return None
    return _load(state_folder(topology) / STATE_NAME)


def running_topology(config: str | Path) -> Topology | None:
    """What runs of a topology file, whatever that file holds by now.

    None when nothing does, or several systems under different names.
    """
    source = Path(config).absolute()
    found: list[Topology] = []
    for path in (source.parent / FOLDER_NAME).glob(f"*/{TOPOLOGY_NAME}"):
        try:
            topology = msgspec.json.decode(path.read_bytes(), type=Topology)
        except (OSError, msgspec.DecodeError):
            continue
        if topology.source == os.path.abspath(config) and is_locked(topology):
            found.append(topology)
    return found[0] if len(found) == 1 else None


def broker_address(topology: Topology) -> Address:
    """Where clients reach the broker: the running system's real address, else the YAML's."""
    state = read_state(topology)
    address = topology.broker if state is None else parse_address(state.broker.address)
    if address.path is not None:
        path = base_folder(topology).absolute() / address.path
        return Address(path=str(path))
    # an address to listen on, not one to connect to
    host = {"0.0.0.0": DEFAULT_HOST, "::": "::1"}.get(address.host, address.host)
    return Address(host=host, port=address.port)


def parse_address(text: str) -> Address:
    """The address that ``str(address)`` gave.  Raises ``ValueError`` when it is none."""
    if text.startswith("unix:"):
        return Address(path=text.removeprefix("unix:"))
    host, _, port = text.rpartition(":")
    return Address(host=host.removeprefix("[").removesuffix("]"), port=int(port))


def is_locked(topology: Topology) -> bool:
    """Whether a supervisor of this topology is alive."""
    try:
        descriptor = os.open(state_folder(topology) / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _load(path: Path) -> SystemState | None:
    """None for the moment between a supervisor's lock and its first word."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=SystemState)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


class StateFolder:
    """The supervisor's side: holds the lock, writes the state, removes all of it at the end."""

    def __init__(self, topology: Topology) -> None:
        """Take the lock, and make the secret.  Raises ``AlreadyRunning`` or ``StateError``."""
        self.path = state_folder(topology)
        self._written = b""
        self._written_topology: Topology | None = None
        self._keep_secret = keeps_secret(topology)
        self._lock = self._acquire(topology)
        try:
            # what a killed supervisor left must not be read as ours
            (self.path / STATE_NAME).unlink(missing_ok=True)
            self.secret = make_secret(self.path, self._keep_secret)
        except (OSError, SecretError) as error:
            self.forget()
            raise StateError(f"cannot keep a secret in {self.path}: {error}") from None

    @classmethod
    def left_behind(cls, topology: Topology) -> StateFolder | None:
        """The locked folder of a supervisor that was killed, to be removed; None without one."""
        if not (state_folder(topology) / LOCK_NAME).exists():
            return None
        try:
            return cls(topology)
        except (AlreadyRunning, StateError):
            return None

    def _acquire(self, topology: Topology) -> int:
        give_up_at = time.monotonic() + _LOCK_PATIENCE_S
        while True:
            refusal: OSError | None = None
            try:
                if (descriptor := self._try_lock()) is not None:
                    return descriptor
            except OSError as error:
                refusal = error
            # another supervisor may be making or removing its folder, but not for long
            passing = refusal is None or isinstance(refusal, FileNotFoundError | FileExistsError)
            if not passing or time.monotonic() >= give_up_at:
                break
            time.sleep(_LOCK_PAUSE_S)
        if refusal is None:
            raise _already_running(topology)
        raise StateError(
            f"cannot keep the state of {topology.name!r} in {self.path}: {refusal.strerror}; "
            "that folder must be writable"
        )

    def _try_lock(self) -> int | None:
        """The locked file, or None when another holds it.  Raises ``OSError``."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(self.path / LOCK_NAME, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if self._is_current(descriptor):
            return descriptor
        os.close(descriptor)
        return None

    def _is_current(self, descriptor: int) -> bool:
        """False when the file was removed between our opening and locking it."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path / LOCK_NAME))
        except FileNotFoundError:
            return False

    def write(self, state: SystemState) -> None:
        """Replace the state file; a reader sees the old or the new one, never a half."""
        data = msgspec.json.encode(state)
        if data == self._written:
            return
        self._replace(STATE_NAME, data)
        self._written = data

    def _replace(self, name: str, data: bytes) -> None:
        path = self.path / name
        fresh = path.with_suffix(".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
        os.replace(fresh, path)

    def write_topology(self, topology: Topology) -> None:
        """Leave word of what runs, for commands that cannot read it in the file any more."""
        if topology is not self._written_topology:
            self._replace(TOPOLOGY_NAME, msgspec.json.encode(topology))
            self._written_topology = topology

    def publish(self, broker: Address, *, tls: bool) -> str:
        """Let clients that know nothing but the address find the secret; why not, else empty."""
        try:
            publish(broker, self.path / SECRET_NAME, tls=tls)
        except (OSError, SecretError) as error:
            return (
                f"clients have to name the topology or a key file: the way to the secret cannot "
                f"be kept in {runtime_folder()}: {error}"
            )
        return ""

    def withdraw(self) -> None:
        """Take that back, unless the address has become another system's."""
        withdraw(self.path / SECRET_NAME)

    def forget(self) -> None:
        """Close this process's copy of the lock; another process holds it on."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def remove(self) -> None:
        """Leave nothing behind and let go of the lock."""
        if self._lock < 0:
            return
        self.withdraw()
        kept = () if self._keep_secret else (SECRET_NAME,)
        for name in (STATE_NAME, TOPOLOGY_NAME, CONTROL_NAME, *kept, LOCK_NAME):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.path, self.path.parent):
            with contextlib.suppress(OSError):  # other topologies, or a user's file, are in it
                folder.rmdir()
        self.forget()


def _already_running(topology: Topology) -> AlreadyRunning:
    state = read_state(topology)
    if state is None:
        return AlreadyRunning(f"{topology.name!r} is already being started or stopped")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.started_at))
    return AlreadyRunning(
        f"already running (pid {state.pid}, since {since}, broker at {state.broker.address})"
    )
