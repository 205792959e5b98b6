"""Writes a ``config.yaml`` into the current folder and loads it, for the tests of loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lbcore.core.errors import ConfigError
from lbcore.core.topology import Topology
from lbcore.shell.config_file import examine, load


def load_text(
    text: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Topology:
    """The topology of ``config.yaml`` in the current folder, after writing it."""
    Path("config.yaml").write_text(text, encoding="utf-8", newline="")
    return load("config.yaml", overrides, environ or {})


def mistakes(
    text: str, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> list[str]:
    """One line for each problem of a text; ``load`` must report the same."""
    Path("config.yaml").write_text(text, encoding="utf-8", newline="")
    problems = examine("config.yaml", overrides, environ or {}).problems
    assert problems, "no problem was found"
    with pytest.raises(ConfigError) as caught:
        load("config.yaml", overrides, environ or {})
    lines = [str(problem) for problem in problems]
    for line in lines:
        assert line in str(caught.value)
        assert line.isprintable()
    return lines


def outcome(flags: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Topology | str:
    """The topology of the file that is there, or the text of the ConfigError; nothing else."""
    try:
        return load("config.yaml", flags, environ or {})
    except ConfigError as error:
        return str(error)


def is_report(text: str) -> bool:
    """Whether a text is lines that a terminal shows as they are."""
    return bool(text) and all(line.isprintable() for line in text.splitlines())
