"""The keys of ``config.yaml`` and what each one takes.

``config.py`` reads a topology by these tables; ``overrides.py`` knows from them which names exist;
``docs/topology.md`` explains them to people, and a test compares the two.  Defaults are not here:
they stand in ``topology.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .policy_readers import PolicyName, Switch, WholeOrAuto
from .readers import (
    AnyHost,
    Choice,
    Environment,
    Exactly,
    Files,
    Host,
    ListOf,
    Name,
    Number,
    PathText,
    Reader,
    RetentionText,
    RotationText,
    Size,
    SizeOrNone,
    Tag,
    Whole,
)

WORKERS_MAX: Final = 4096
POLICIES: Final = (
    "least_load",
    "least_pending",
    "round_robin",
    "random",
    "power_of_two",
    "join_idle",
    "central_fifo",
    "peak_ewma",
    "prequal",
    "least_cpu",
    "weighted_cpu",
    "pending_plus_cpu",
    "static_weight",
)
LEVELS: Final = ("TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL")
#: the log files of these two processes have these names
RESERVED_NAMES: Final = ("broker", "supervisor")

PORT: Final = Whole("a port", 0, 65535)
SOCKET_PATH: Final = PathText("the path of a Unix socket, such as run/broker.sock")

TOP_KEYS: Final[Mapping[str, Reader]] = {"version": Exactly(1), "name": Name()}

TLS_KEYS: Final[Mapping[str, Reader]] = {
    "cert": PathText("the path of a certificate in PEM, such as lb.crt"),
    "key": PathText("the path of its key in PEM, such as lb.key"),
}
BROKER_KEYS: Final[Mapping[str, Reader]] = {
    "host": AnyHost(),
    "port": PORT,
    "path": SOCKET_PATH,
    "tls": Files(TLS_KEYS),
}

#: the keys of a worker that the short form ``{count: N, ...}`` gives to all of them
SHARED_WORKER_KEYS: Final[Mapping[str, Reader]] = {
    "host": Host(),
    "weight": Number("a number", 0.001, 1000),
    "concurrency": Whole("a whole number", 1, 65535),
    "cpus": ListOf(Whole("a core", 0, 65535), "a list of cores, such as [0, 1]"),
    "nice": Whole("a whole number", -20, 19),
    "tags": ListOf(Tag(), "a list of texts, such as [gpu, big]"),
    "env": Environment(),
}
WORKER_KEYS: Final[Mapping[str, Reader]] = {
    "name": Name(RESERVED_NAMES),
    "port": PORT,
    "path": SOCKET_PATH,
    **SHARED_WORKER_KEYS,
}
COUNT: Final = Whole("a number of workers", 1, WORKERS_MAX)
SHORT_WORKERS_KEYS: Final[Mapping[str, Reader]] = {"count": COUNT, **SHARED_WORKER_KEYS}

POLICY_KEYS: Final[Mapping[str, Reader]] = {
    "name": PolicyName(POLICIES),
    "pending_weight": Number("a number", 0, 1000),
    "cpu_weight": Number("a number", 0, 10),
    "order": Choice(("fifo", "shortest")),
    "late_binding": Switch(),
    "hedge": Number("a part", 0, 0.9999),
    "prefetch": WholeOrAuto("requests", 0, 4096),
    "learn_costs": Switch(),
    "learn_speeds": Switch(),
    "fade_reports": Switch(),
    "guard_failures": Switch(),
    "eject": Switch(),
    "slow_start": Switch(),
}
LOGS_KEYS: Final[Mapping[str, Reader]] = {
    "folder": PathText("the path of a folder, such as logs"),
    "level": Choice(LEVELS),
    "rotation": RotationText(),
    "retention": RetentionText(),
    "format": Choice(("text", "json")),
}
LIMITS_KEYS: Final[Mapping[str, Reader]] = {
    "queue": Whole("a number of requests", 1, 1_000_000_000),
    "queue_bytes": Size(1024, 1 << 40),
    "client_queue": Whole("a number of requests", 1, 1_000_000_000),
    "client_queue_bytes": Size(1024, 1 << 40),
    "frame_bytes": Size(1024, (1 << 32) - 1),
    "connections": Whole("a number of connections", 1, 1_000_000),
    "max_attempts": Whole("a number of attempts", 1, 1000),
    "drain_s": Number("seconds", 0, 86_400),
    "cancel_grace_s": Number("seconds", 0, 86_400),
    "worker_memory": SizeOrNone(1 << 20, 1 << 44),
}
DURABILITY_KEYS: Final[Mapping[str, Reader]] = {
    "level": Choice(("memory", "process", "disk")),
    "synchronous": Choice(("auto", "normal", "full", "extra")),
    "folder": PathText("the path of a folder, such as /var/lib/lb"),
    "keep_s": Whole("seconds", 60, 10 * 365 * 86_400),
    "keep_results": Whole("a number of results", 1000, 1_000_000_000),
    "keep_bytes": Size(1 << 20, 1 << 44),
}
TASKS: Final = ListOf(
    PathText("a module (my_package.tasks) or a file (my_tasks.py)"),
    "a list of modules or .py files, such as [my_tasks.py]",
)

#: sections that are plain tables of keys; ``workers`` and ``tasks`` have forms of their own
SECTIONS: Final[Mapping[str, Mapping[str, Reader]]] = {
    "broker": BROKER_KEYS,
    "policy": POLICY_KEYS,
    "logs": LOGS_KEYS,
    "limits": LIMITS_KEYS,
    "durability": DURABILITY_KEYS,
}
#: every key of the top level, in the order of the default file
TOPOLOGY_KEYS: Final = (
    "version",
    "name",
    "broker",
    "workers",
    "policy",
    "tasks",
    "logs",
    "limits",
    "durability",
)


def sections_with(key: str) -> tuple[str, ...]:
    """The sections that do have a key, for one that was written in the wrong place."""
    places = [section for section, keys in SECTIONS.items() if key in keys]
    if key in WORKER_KEYS or key == "count":
        places.append("workers")
    if key in TOPOLOGY_KEYS:
        places.append("the top level")
    return tuple(places)
