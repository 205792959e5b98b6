"""What ``config.yaml`` describes, as frozen values: the nouns that every other module reads.

``config.py`` builds these from a mapping and checks them; nothing here checks or reads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_HOST = "127.0.0.1"
DEFAULT_BROKER_PORT = 8000


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a process listens: TCP (``host``, ``port``; 0 means any free port) or a Unix socket."""

    host: str = DEFAULT_HOST
    port: int = 0
    path: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The broker's certificate and its key: absolute paths of PEM files."""

    cert: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """One worker process."""

    name: str
    address: Address = field(default_factory=Address)
    #: declared speed: a worker of weight 2 is expected to run CPU-bound work twice as fast
    weight: float = 1.0
    #: how many requests it runs at once; 1 runs them in its main thread, more in threads
    concurrency: int = 1
    #: the cores it may run on; empty means all
    cpus: tuple[int, ...] = ()
    nice: int = 0
    tags: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyConfig:
    """Which rule selects workers, and what pending work and reported CPU weigh in it."""

    #: one that is built in, or a class as ``package.module:Class`` or ``/path/file.py:Class``
    name: str = "least_load"
    #: factor on the expected seconds of pending work in a worker's load; 0 ignores pending
    pending_weight: float = 1.0
    #: exponent on the share of CPU a worker can get by psutil's reports; 0 ignores CPU
    cpu_weight: float = 1.0
    #: which waiting request goes first: "fifo", or "shortest", the one that is expected to take
    #: least, within bounds
    order: str = "fifo"
    #: requests wait in the broker until they can start; off: each is bound when it arrives
    late_binding: bool = True
    #: a request that runs longer than this part of its kind does is run a second time where a
    #: worker is idle, and the first answer counts; 0: never
    hedge: float = 0.0
    #: requests that may wait at a worker behind those that run; -1: as many as it takes
    prefetch: int = -1
    #: off: a task costs what it declares, all workers are as fast as their weights say
    learn_costs: bool = True
    learn_speeds: bool = True
    #: off: a CPU report counts in full until the next one comes
    fade_reports: bool = True
    #: off: a request that failed in no time took no time
    guard_failures: bool = True
    #: off: a worker that fails what others do goes on getting work
    eject: bool = True
    #: off: a worker that is new may have requests waiting there at once
    slow_start: bool = True

    @property
    def is_own(self) -> bool:
        """Whether it is a class of the user's."""
        return ":" in self.name

    @property
    def label(self) -> str:
        """Its name for people: without the folder."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsConfig:
    """Where and how each process logs."""

    folder: str = "logs"
    level: str = "INFO"
    #: size or age at which a log file is rotated, in loguru's words: "10 MB", "1 day"
    rotation: str = "10 MB"
    #: how many rotated files, or how long, are kept: "5", "7 days"
    retention: str = "5"
    #: "text" or "json"
    format: str = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds; every queue and every frame has one."""

    #: requests that may wait in the broker; beyond it a request is answered ``Busy``
    queue: int = 1_000_000
    #: bytes that may wait in the broker
    queue_bytes: int = 1 << 30
    #: the same for each client
    client_queue: int = 500_000
    client_queue_bytes: int = 512 << 20
    #: largest request or result
    frame_bytes: int = 64 << 20
    #: client connections at once
    connections: int = 1024
    #: how many times a request is tried when workers die under it
    max_attempts: int = 3
    #: how long stopping waits for accepted requests
    drain_s: float = 30.0
    #: how long a cancelled request may still run before its worker is replaced
    cancel_grace_s: float = 2.0
    #: resident bytes, with children, above which a worker is replaced; 0: no bound
    worker_memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DurabilityConfig:
    """What accepted requests survive, and how long their results are kept."""

    #: what every request gets: "memory", "process" or "disk"
    level: str = "memory"
    #: how SQLite syncs: "normal", "full" or "extra"; "auto": as the level needs
    synchronous: str = "auto"
    #: the file is in a folder of the topology's name in it
    folder: str = ".lb"
    #: how long results are kept
    keep_s: int = 86_400
    #: and how many, and how many bytes of them: beyond that the oldest go
    keep_results: int = 1_000_000
    keep_bytes: int = 1 << 30

    @property
    def synchronous_word(self) -> str:
        """SQLite's word for how a durable request is written."""
        if self.synchronous != "auto":
            return self.synchronous
        return "normal" if self.level == "process" else "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The whole system on this machine."""

    name: str
    broker: Address
    workers: tuple[WorkerConfig, ...]
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    #: modules (``package.module``) or absolute paths of .py files, besides the built-in tasks
    tasks: tuple[str, ...] = ()
    logs: LogsConfig = field(default_factory=LogsConfig)
    limits: Limits = field(default_factory=Limits)
    #: the broker speaks TLS with this; other machines may reach it only then
    tls: Tls | None = None
    durability: DurabilityConfig = field(default_factory=DurabilityConfig)
    #: absolute path of the YAML file; its folder is what relative paths start from
    source: str = ""
