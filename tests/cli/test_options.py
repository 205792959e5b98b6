"""Options that commands share."""

from __future__ import annotations

import sys

import pytest

from lbcore.cli.options import program_name


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("/usr/local/bin/lb", "lb"),
        ("lb.py", "python lb.py"),
        ("/opt/my lb/lb.py", "python '/opt/my lb/lb.py'"),
        ("/x/lbcore/__main__.py", "python -m lbcore"),
        ("", "lb"),
    ],
)
def test_messages_name_the_program_as_it_was_started(
    script: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    assert program_name() == name
