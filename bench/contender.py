"""What a measured system looks like to the benchmark.

A contender lives in an agent: a process of its own that is the one client of the system, starts
whatever the system needs, and stops it.  It must leave no process behind when ``stop`` returns.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from bench.measure import calibrate, summarize_latencies

#: workers of every system in every row that does not say otherwise
WORKERS = 2
#: how long a system may take to be ready
START_S = 20.0

#: where Debian puts servers, which an ordinary user's PATH may lack
SERVER_FOLDERS = ("/usr/sbin", "/usr/local/sbin")


class BenchError(Exception):
    """The benchmark cannot go on with this contender; the message is one clear line."""


class Contender:
    """One system under measurement.  Subclasses override what they can do."""

    #: what ``--only`` calls it
    name: ClassVar[str]
    #: what the table calls it
    title: ClassVar[str]
    #: the command that installs what it needs
    install: ClassVar[str] = ""
    #: Python modules it needs besides lb's own
    modules: ClassVar[tuple[str, ...]] = ()
    #: programs it needs
    programs: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def missing(cls) -> list[str]:
        """Names of the modules and programs that it needs and this machine lacks."""
        modules = [name for name in cls.modules if find_spec(name) is None]
        return modules + [name for name in cls.programs if find_program(name) is None]

    def start(self, folder: Path) -> None:
        """Start the system; ``folder`` is private to this contender.  Raises ``BenchError``."""

    def stop(self) -> None:
        """Stop the system and everything that ``start`` began."""

    def versions(self) -> dict[str, str]:
        """Versions of what is measured, for the record."""
        return {}

    def send_many(self, count: int, in_flight: int, mode: str) -> float:
        """Seconds for ``count`` no-ops with ``in_flight`` of them unanswered at any time."""
        raise BenchError(f"{self.title} has no measurement with many in flight")

    def send_single(self, count: int) -> list[float]:
        """The round trip of each of ``count`` no-ops, one at a time, in seconds."""
        raise BenchError(f"{self.title} has no measurement one at a time")

    def send_spin(self, count: int, seconds: float) -> float:
        """Seconds for ``count`` tasks that each burn ``seconds`` of CPU, all submitted at once."""
        raise BenchError(f"{self.title} has no measurement of CPU-bound work")

    def operations(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """What an agent may be asked to do, by name; each returns something JSON can hold."""
        return {
            "calibrate_many": self._calibrate_many,
            "calibrate_single": self._calibrate_single,
            "many": self._many,
            "single": self._single,
            "spin": self._spin,
            "versions": self.versions,
        }

    def _calibrate_many(self, in_flight: int, mode: str, target_s: float) -> dict[str, Any]:
        def run(count: int) -> float:
            return self.send_many(count, in_flight, mode)

        return {"count": calibrate(run, target_s=target_s, start=2 * in_flight)}

    def _calibrate_single(self, target_s: float) -> dict[str, Any]:
        def run(count: int) -> float:
            return sum(self.send_single(count))

        return {"count": calibrate(run, target_s=target_s, start=20)}

    def _many(self, count: int, in_flight: int, mode: str) -> dict[str, Any]:
        seconds = self.send_many(count, in_flight, mode)
        return {"seconds": seconds, "rate": count / seconds}

    def _single(self, count: int) -> dict[str, Any]:
        return dict(summarize_latencies(self.send_single(count)))

    def _spin(self, count: int, seconds: float) -> dict[str, Any]:
        return {"seconds": self.send_spin(count, seconds)}


def find_program(name: str) -> str | None:
    """The path of a program on PATH or in the folders where servers are put, else None."""
    found = shutil.which(name)
    for folder in SERVER_FOLDERS:
        found = found or shutil.which(name, path=folder)
    return found
