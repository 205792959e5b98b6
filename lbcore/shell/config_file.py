"""Reads ``config.yaml``, environment variables and ``--set`` flags, and hands them to the core.

This is the only way a topology is loaded; every command calls ``load``, ``lb check`` calls
``examine``.  Decides nothing about keys, that is for ``core/config.py``; binds and starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lbcore.core.config import build_topology
from lbcore.core.errors import ConfigError
from lbcore.core.overrides import (
    OTHER_VARIABLES,
    PREFIX,
    Override,
    apply_overrides,
    path_parts,
    variable_parts,
)
from lbcore.core.problems import KeyPath, Origin, Problem, report, show
from lbcore.core.topology import Topology

from .yaml_reader import Document, read_yaml

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX: Final = 1 << 20
#: a longer value of an override is a mistake
VALUE_CHARS_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Examination:
    """What a topology's file and overrides amount to: a topology, or at least one problem."""

    topology: Topology | None
    problems: list[Problem]
    #: where every key was written
    origins: Mapping[KeyPath, Origin]


def load(
    path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Topology:
    """The checked topology that a YAML file, the environment and ``--set`` flags describe.

    ``overrides`` are texts such as ``broker.port=8001``; they win over ``LB_BROKER__PORT``, which
    wins over the file.  Raises ``ConfigError`` with every mistake, one a line.
    """
    examination = examine(path, overrides, environ)
    if examination.topology is None:
        raise ConfigError(report(str(path), examination.problems))
    return examination.topology


def examine(
    path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Examination:
    """As ``load``, but returns the problems: those of the file by line, then the overrides'."""
    document = _read_file(str(path))
    problems = document.problems
    if document.value is None and problems:
        return Examination(None, problems, document.origins)
    if document.value is None:
        document.value = {}  # every line is a comment: all defaults
    values, value_problems = _read_overrides(overrides, environ)
    problems += value_problems
    if isinstance(document.value, dict):
        problems += apply_overrides(document.value, document.origins, values)
    result = build_topology(
        document.value,
        document.origins,
        source=os.path.abspath(path),
        cores=os.cpu_count() or 1,
        file_exists=os.path.isfile,
    )
    if isinstance(result, list):
        problems += result
    topology = result if isinstance(result, Topology) and not problems else None
    return Examination(topology, sorted(problems, key=_order), document.origins)


def line_of(path: str | Path, key: Sequence[str | int]) -> int | None:
    """The line where a key, or else the nearest section around it, is written; None for neither.

    For messages about a topology that was loaded before, such as one about a port in use.
    """
    origins = _read_file(str(path)).origins
    for length in range(len(key), 0, -1):
        origin = origins.get(tuple(key[:length]))
        if origin is not None:
            return origin.line
    return None


def _order(problem: Problem) -> tuple[bool, int]:
    line = problem.origin.line
    return (line is None, line or 0)


def _read_file(path: str) -> Document:
    """The file's values, or a document whose only content is the reason why there are none."""
    try:
        with open(path, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return _failed(path, f"there is no such file; {_missing_advice(path)}")
    except IsADirectoryError:
        return _failed(path, "this is a folder; name the YAML file in it with -c FILE")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return _failed(path, f"cannot be read: {reason}")
    if len(content) > FILE_BYTES_MAX:
        return _failed(path, f"larger than {FILE_BYTES_MAX >> 20} MiB; this is no topology")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        message = f"byte {content[error.start]:#04x} is not UTF-8; save the file as UTF-8"
        return _failed(path, message, line)
    document = read_yaml(text, path)
    document.origins.setdefault((), Origin(path))
    return document


def _missing_advice(path: str) -> str:
    if os.path.isabs(path) or os.sep in path:
        return "name the topology with -c FILE"
    return "go to its folder, or name it with -c FILE"


def _failed(path: str, message: str, line: int | None = None) -> Document:
    return Document(problems=[Problem(Origin(path, line), "", message)])


def _read_overrides(
    flags: Sequence[str], environ: Mapping[str, str]
) -> tuple[list[Override], list[Problem]]:
    """Variables first, whole sections before their keys; then the flags in the order given."""
    overrides: list[Override] = []
    problems: list[Problem] = []
    names = [name for name in environ if name.startswith(PREFIX) and name not in OTHER_VARIABLES]
    for name in sorted(names, key=lambda name: (name.count("__"), name)):
        parts = variable_parts(name)
        text = environ[name]
        _read_value(overrides, problems, _printable(name), parts, text, is_variable=True)
    for flag in flags:
        key, equals, text = flag.partition("=")
        flag_parts = path_parts(key.strip())
        source = f"--set {_printable(key.strip())}"
        if not equals or flag_parts is None:
            message = "write it as KEY=VALUE, such as --set broker.port=8001"
            problems.append(Problem(Origin(source), "", message))
            continue
        _read_value(overrides, problems, source, flag_parts, text, is_variable=False)
    return overrides, problems


def _read_value(
    overrides: list[Override],
    problems: list[Problem],
    source: str,
    parts: tuple[str, ...],
    text: str,
    *,
    is_variable: bool,
) -> None:
    """Read the value of one override as YAML: a scalar, or a list or mapping in brackets."""
    if len(text) > VALUE_CHARS_MAX:
        message = f"a value of more than {VALUE_CHARS_MAX} characters; write it into the file"
        problems.append(Problem(Origin(source), "", message))
        return
    if parts[0] == "workers" and len(parts) > 3 and parts[-2] == "env":
        # a variable of a worker's environment is this very text, not what YAML makes of it
        overrides.append(Override(source, parts, text, {}, is_variable))
        return
    document = read_yaml(text, source)
    if document.problems:
        message = document.problems[0].message
        problems.append(Problem(Origin(source), "", message))
        return
    written = {path: origin.text for path, origin in document.origins.items()}
    overrides.append(Override(source, parts, document.value, written, is_variable))


def _printable(text: str) -> str:
    return text if text.isprintable() and len(text) <= 100 else show(text)
