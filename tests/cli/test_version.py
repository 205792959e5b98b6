"""``lb version``."""

from __future__ import annotations

import json
import platform

import pytest

from lbcore import __version__
from lbcore.cli.main import run


def test_version_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"lb {__version__}"
    assert lines[1].startswith(f"Python {platform.python_version()} on ")
    assert any(line.startswith("  msgspec  0.") for line in lines)


def test_version_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["lb"] == __version__
    assert facts["python"] == platform.python_version()
    assert all(facts["dependencies"].values())
