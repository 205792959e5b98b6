"""Every error leads to the exit code that scripts rely on."""

from __future__ import annotations

import pytest

from lbcore.cli.exit_codes import ExitCode, Terminated, exit_code_of
from lbcore.core.errors import (
    BadArguments,
    BrokerUnavailable,
    Busy,
    ConfigError,
    DeadlineExceeded,
    LBError,
    ProtocolError,
    TaskError,
    UnknownTask,
)
from lbcore.shell.state import AlreadyRunning
from lbcore.shell.tasks import TaskImportError


class OwnCode(LBError):
    """An error that brings its own code."""

    exit_code = 17


class Narrower(ConfigError):
    """A subclass without an entry of its own."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 2),
        (Narrower("x"), 2),
        (TaskImportError("x"), 2),
        (UnknownTask("x"), 2),
        (BadArguments("x"), 2),
        (BrokerUnavailable("x"), 3),
        (ProtocolError("x"), 3),
        (AlreadyRunning("x"), 4),
        (DeadlineExceeded("x"), 124),
        (TaskError("x"), 1),
        (Busy("x"), 1),
        (LBError("x"), 1),
        (OwnCode("x"), 17),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
)
def test_code_of_an_error(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


def test_the_numbers_are_those_of_the_documentation() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0,
        "FAILED": 1,
        "USAGE": 2,
        "UNAVAILABLE": 3,
        "ALREADY_RUNNING": 4,
        "TIMED_OUT": 124,
        "INTERRUPTED": 130,
        "BROKEN_PIPE": 141,
        "TERMINATED": 143,
    }
