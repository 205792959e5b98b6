"""What the exit code of ``lb`` means; scripts rely on these numbers.

An error class of another module may carry its own ``exit_code`` attribute; the table below is for
those that do not.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Every exit code that lb gives on purpose."""

    OK = 0
    #: a task failed, or a worker is not healthy
    FAILED = 1
    #: the command line, the topology or a task module is wrong
    USAGE = 2
    #: nothing runs there, or it could not be started
    UNAVAILABLE = 3
    #: the topology is already up
    ALREADY_RUNNING = 4
    #: ``send --timeout`` ran out, as with coreutils' ``timeout``
    TIMED_OUT = 124
    #: 128 + SIGINT
    INTERRUPTED = 130
    #: 128 + SIGPIPE: the reader of our output went away
    BROKEN_PIPE = 141
    #: 128 + SIGTERM
    TERMINATED = 143


#: names of error classes rather than classes: some live in modules that are slow to import
_CODES = {
    "ConfigError": ExitCode.USAGE,
    "TaskImportError": ExitCode.USAGE,
    "UnknownTask": ExitCode.USAGE,
    "BadArguments": ExitCode.USAGE,
    "BrokerUnavailable": ExitCode.UNAVAILABLE,
    "ProtocolError": ExitCode.UNAVAILABLE,
    "AlreadyRunning": ExitCode.ALREADY_RUNNING,
    "DeadlineExceeded": ExitCode.TIMED_OUT,
}


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: stop as for Ctrl-C, but exit with 143."""


def exit_code_of(error: BaseException) -> int:
    """The exit code for an error that ends the command: its own, its class's, or 1."""
    if isinstance(error, Terminated):
        return ExitCode.TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    for cls in type(error).__mro__:
        if cls.__name__ in _CODES:
            return _CODES[cls.__name__]
    return ExitCode.FAILED
