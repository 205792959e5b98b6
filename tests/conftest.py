"""For the whole suite: real systems to test with, and proof that nothing of them is left."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests.e2e.running import REPOSITORY, RunningSystem, survivors, topology

#: inherited by every process that this run of the suite starts
_RUN_MARK = "RUN_OF_A_TEST_SUITE"
#: how long the last processes may take to end
_LAST_ONES_S = 2.0

_run = uuid.uuid4().hex
_files_before: set[Path] = set()


def pytest_configure(config: pytest.Config) -> None:
    """Make Ctrl-C work as always, and remember how things were."""
    # a suite that was started with `&` in a script ignores SIGINT, and so would its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # how busy the machine is says nothing about a property
    settings.register_profile("lb", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("lb")
    os.environ[_RUN_MARK] = _run
    # the keys of the systems of tests are not to be found among those of the user
    os.environ["LB_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="lb-tests-")
    _files_before.update(_traces())


def pytest_unconfigure() -> None:
    """Remove what held the ways to the keys."""
    shutil.rmtree(os.environ.pop("LB_RUNTIME_DIR"), ignore_errors=True)


def _traces() -> set[Path]:
    """What a system that was started in the clone, and not in a test's folder, writes there."""
    return {*REPOSITORY.glob(".lb/*/*"), *REPOSITORY.glob("logs/*.log")}


def _leftovers(config: pytest.Config) -> list[psutil.Process]:
    """Processes of this run: by the mark, or by a folder of its tests in the command line."""
    found = {process.pid: process for process in survivors(_RUN_MARK, _run)}
    factory = getattr(config, "_tmp_path_factory", None)
    folder = getattr(factory, "_basetemp", None)
    for process in psutil.process_iter() if folder is not None else ():
        try:
            if any(str(folder) in word for word in process.cmdline()):
                found[process.pid] = process
        except psutil.Error:
            continue
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [process for pid, process in found.items() if pid not in own]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves a process or a file behind."""
    config = session.config
    give_up_at = time.monotonic() + _LAST_ONES_S
    while (left := _leftovers(config)) and time.monotonic() < give_up_at:
        time.sleep(0.05)
    problems = []
    for process in left:
        try:
            problems.append(f"process {process.pid}: {' '.join(process.cmdline())}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    problems += [f"file {path}" for path in sorted(_traces() - _files_before)]
    if problems:
        report = "".join(f"\n  {problem}" for problem in problems)
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\nthe tests left behind:{report}", red=True, bold=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


Start = Callable[..., RunningSystem]


@pytest.fixture
def system(tmp_path: Path) -> Iterator[Start]:
    """Starts systems: ``system(workers=2, more=YAML, ...)`` gives one that runs.

    At the end of the test each is stopped with ``down``, and nothing of it may be left.
    ``start=False`` only writes the YAML, ``yaml=...`` gives the whole of it.
    """
    systems: list[RunningSystem] = []

    def start(
        workers: int | str = 2,
        *,
        more: str = "",
        broker: str = "{port: 0}",
        yaml: str | None = None,
        start: bool = True,
    ) -> RunningSystem:
        folder = tmp_path / f"system-{len(systems) + 1}"
        folder.mkdir()
        text = topology(workers, more=more, broker=broker) if yaml is None else yaml
        made = RunningSystem(folder, text)
        systems.append(made)
        if start:
            made.up()
        return made

    yield start
    try:
        for made in systems:
            made.down()
    finally:
        for made in systems:
            made.clean_up()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """One running system of two workers for all tests that leave it as they found it."""
    made = RunningSystem(tmp_path_factory.mktemp("shared"), topology(2))
    try:
        made.up()
        yield made
        made.down()
    finally:
        made.clean_up()
