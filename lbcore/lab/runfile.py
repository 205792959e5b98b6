"""A run as a file: what was measured, and all that is needed to see it and to do it again.

``lb simulate``, ``compare`` and ``send`` write it, ``lb report`` reads it.  It is one JSON object;
all but its kind and title may be missing, and a report leaves out what is not there.  Times are in
seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from lbcore.core.errors import LBError

KINDS: Final = ("simulate", "compare", "send", "recording")


class RunFileError(LBError):
    """A file is no run that can be shown; the message says why."""

    exit_code = 2


@dataclass(slots=True, kw_only=True)
class RunFile:
    """One run."""

    #: which command it comes from
    kind: str
    title: str
    #: the command that does it again
    again: str = ""
    #: when it was made, ISO 8601
    made_at: str = ""
    #: version of lb
    lb: str = ""
    machine: dict[str, Any] = field(default_factory=dict)
    #: what was set: name -> value
    settings: dict[str, Any] = field(default_factory=dict)
    #: ``policy``, ``workers`` (a list of name, weight, concurrency, speed), ``tasks`` (name,
    #: service_s, share)
    topology: dict[str, Any] = field(default_factory=dict)
    #: a row for each policy: policy, mean, p50, p99, ..., and as ``measured`` the same from real
    #: processes
    policies: list[dict[str, Any]] = field(default_factory=list)
    #: policy -> list of (part of the requests, seconds that they took at most)
    quantiles: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    #: policy -> worker -> requests done
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    #: policy -> worker -> share of the work relative to its share of the capacity
    shares: dict[str, dict[str, float]] = field(default_factory=dict)
    #: policy -> moments, and by worker the requests there and the part of the time it was busy,
    #: or the CPU that it used
    series: dict[str, dict[str, Any]] = field(default_factory=dict)


def plain(run: RunFile) -> dict[str, Any]:
    """The object that is written; figures that are no numbers become null."""
    found: dict[str, Any] = _speakable({"lb_run": 1, **asdict(run)})
    return found


def read_run(found: Any, where: str) -> RunFile:
    """A run from what a file holds.  Raises ``RunFileError``."""
    if not isinstance(found, Mapping) or found.get("lb_run") != 1:
        raise RunFileError(f"{where}: no run of lb; --save of simulate, compare or send writes one")
    values = {key: value for key, value in found.items() if key in RunFile.__dataclass_fields__}
    if values.get("kind") not in KINDS or not isinstance(values.get("title"), str):
        raise RunFileError(f"{where}: it does not say what kind of run it is")
    kinds = {name: type(getattr(RunFile(kind="send", title=""), name)) for name in values}
    for name, value in values.items():
        if not isinstance(value, kinds[name]):
            raise RunFileError(f"{where}: {name} is {type(value).__name__}, not as it was written")
    return RunFile(**values)


def _speakable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _speakable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_speakable(each) for each in value]
    return value
