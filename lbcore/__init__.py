"""lb: a load balancer and task server for Python on one machine.

    from lbcore import Client, task

Importing this package loads nothing else; ``Client``, ``task`` and the errors come on first use.

Reading order: ``core/topology`` and ``core/frames`` (the words), ``core/broker`` with ``intake``,
``dispatch`` and ``replies`` (the rules), ``core/policies`` (the choice), ``core/worker``,
``shell/broker_process`` and ``shell/worker_process`` (the processes), ``shell/supervisor``,
``cli``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.errors import (
        AccessDenied,
        BadArguments,
        BrokerUnavailable,
        Busy,
        Cancelled,
        ConfigError,
        DeadlineExceeded,
        Forbidden,
        LBError,
        Quarantined,
        RequestError,
        ShuttingDown,
        TaskError,
        TooLarge,
        UnknownTask,
        WorkerLost,
    )
    from .core.policies.base import Outcome, Policy
    from .shell.cancellation import TaskCancelled, cancelled
    from .shell.client import Client
    from .shell.client_stream import Reply
    from .shell.tasks import task

__version__ = "0.1.0"

_ERRORS = (
    "AccessDenied",
    "BadArguments",
    "BrokerUnavailable",
    "Busy",
    "Cancelled",
    "ConfigError",
    "DeadlineExceeded",
    "Forbidden",
    "LBError",
    "Quarantined",
    "RequestError",
    "ShuttingDown",
    "TaskError",
    "TooLarge",
    "UnknownTask",
    "WorkerLost",
)
_HOMES = {
    "Client": ".shell.client",
    "TaskCancelled": ".shell.cancellation",
    "cancelled": ".shell.cancellation",
    "Outcome": ".core.policies.base",
    "Policy": ".core.policies.base",
    "Reply": ".shell.client_stream",
    "task": ".shell.tasks",
    **dict.fromkeys(_ERRORS, ".core.errors"),
}

__all__ = [
    "AccessDenied",
    "BadArguments",
    "BrokerUnavailable",
    "Busy",
    "Cancelled",
    "Client",
    "ConfigError",
    "DeadlineExceeded",
    "Forbidden",
    "LBError",
    "Outcome",
    "Policy",
    "Quarantined",
    "Reply",
    "RequestError",
    "ShuttingDown",
    "TaskCancelled",
    "TaskError",
    "TooLarge",
    "UnknownTask",
    "WorkerLost",
    "__version__",
    "cancelled",
    "task",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(home, __name__), name)
    globals()[name] = value
    return value
