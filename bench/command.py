"""The benchmark's command line: options, one run, the report; the only module here that prints."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bench.machine import machine_facts
from bench.registry import GROUPS
from bench.report import report_json, report_text
from bench.results import all_goals
from bench.rows import ROWS
from bench.session import Session, Settings

DESCRIPTION = "Measure lb beside its peers, in turn, in one run on this machine."
EPILOG = """\
examples:
  python lb.py bench                                   everything, at most 10 min
  python lb.py bench --quick                           see that everything works
  python lb.py bench --only lb,zmq --rows thousand     one row, one peer
  python lb.py bench --only relay --rows single        a floor without lb
  python lb.py bench --json figures.json

exit codes: 0 measured; 1 something failed on the way, or a goal was missed
with --strict; 2 wrong usage; 130 and 143 interrupted, after what was measured.
"""
#: a load average per core above this disturbs the figures
LOAD_MAX = 0.3
DEFAULTS = Settings()


def run_command(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit code."""
    options = _parser().parse_args(arguments)
    settings = _settings(options)
    signal.signal(signal.SIGTERM, _terminate)
    machine = machine_facts()
    _warn_of_load(machine["load_average"][0], machine["cores_usable"])
    folder = Path(tempfile.mkdtemp(prefix="lb-bench-"))
    started = time.monotonic()
    session = Session(settings=settings, folder=folder, say=_say)
    interrupted: int = 0
    try:
        with session:
            for name in settings.rows:
                _say(f"{name}:")
                ROWS[name](session)
    except KeyboardInterrupt:
        interrupted = 128 + signal.SIGINT
    except _Terminated:
        interrupted = 128 + signal.SIGTERM
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report = report_json(
        machine={**machine, "load_average_after": [round(load, 2) for load in os.getloadavg()]},
        settings=_settings_json(settings),
        versions=session.versions,
        rows=session.rows,
        skipped=session.skipped,
        seconds=time.monotonic() - started,
    )
    print(report_text(report, session.rows))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if interrupted:
        return interrupted
    missed = options.strict and any(goal.met is False for goal in all_goals(session.rows))
    return 1 if session.failed or missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lb.py bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", type=_positive, default=DEFAULTS.rounds, metavar="N", help="default: 5"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one tiny round of everything, under a minute"
    )
    parser.add_argument(
        "--only",
        type=_names(GROUPS),
        default=tuple(GROUPS),
        metavar="NAMES",
        help=f"some of: {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--rows",
        type=_names(ROWS),
        default=tuple(ROWS),
        metavar="NAMES",
        help=f"some of: {', '.join(ROWS)}",
    )
    parser.add_argument("--json", type=_writable, metavar="FILE", help="all figures, for programs")
    parser.add_argument(
        "--budget",
        type=float,
        default=DEFAULTS.budget_s,
        metavar="SECONDS",
        help="begin no new round after this time; default: 560",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a goal is missed")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    if not options.quick:
        return Settings(
            rounds=options.rounds,
            short_rounds=max(options.rounds, DEFAULTS.short_rounds),
            budget_s=options.budget,
            only=frozenset(options.only),
            rows=options.rows,
        )
    return Settings(
        quick=True,
        rounds=1,
        short_rounds=1,
        target_s=0.05,
        spin_count=50,
        waiting_count=5_000,
        budget_s=min(options.budget, 60.0),
        only=frozenset(options.only),
        rows=options.rows,
    )


def _settings_json(settings: Settings) -> dict[str, object]:
    return {
        "rounds": settings.rounds,
        "short_rounds": settings.short_rounds,
        "quick": settings.quick,
        "target_s": settings.target_s,
        "budget_s": settings.budget_s,
        "only": sorted(settings.only),
        "rows": list(settings.rows),
        "spin_count": settings.spin_count,
        "spin_s": settings.spin_s,
        "waiting_count": settings.waiting_count,
        "waiting_bytes": settings.waiting_bytes,
    }


class _Names:
    """Reads a list of known names, such as ``lb,zmq``."""

    def __init__(self, known: Sequence[str]) -> None:
        self._known = known

    def __call__(self, text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        unknown = [name for name in names if name not in self._known]
        if unknown or not names:
            known = ", ".join(self._known)
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {known}")
        return names


def _names(known: Iterable[str]) -> _Names:
    return _Names(tuple(known))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds")
    return int(text)


def _writable(text: str) -> Path:
    """A file that can be written; found out now, and not after ten minutes."""
    path = Path(text)
    try:
        path.open("a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot write {text}: {error.strerror}") from None
    return path


def _warn_of_load(load: float, cores: int) -> None:
    if load > LOAD_MAX * cores:
        text = f"the load average is {load:.2f}: other work will disturb the figures"
        _say(textwrap.fill(f"note: {text}", 80))


def _say(text: str) -> None:
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


class _Terminated(BaseException):
    """SIGTERM came; a ``BaseException`` so that nothing on the way takes it for a failure."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


if __name__ == "__main__":
    sys.exit(run_command())
