"""restart and up --watch: new task code, while requests flow."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from lbcore import Client
from tests.e2e.running import PATIENCE_S, RunningSystem, topology, wait_until
from tests.e2e.streaming import (
    names,
    pids,
    streaming,
    wait_for_change,
    wait_for_workers,
)

VERSION = '''
from lbcore import task


@task
def version() -> int:
    """Which code runs."""
    return {}
'''


def write_version(path: Path, version: int | str) -> None:
    """Save the module, with another size each time: a cached one is known by size and second."""
    path.write_text(VERSION.format(version) + "#" * int(time.monotonic() * 100 % 1000))


def versions(client: Client) -> set[int]:
    return {reply.value() for reply in client.stream([("version", {})] * 40, window=20)}


def with_own_tasks(folder: Path) -> RunningSystem:
    write_version(folder / "own.py", 1)
    return RunningSystem(folder, topology(3, tasks=False) + "tasks: [own.py]\n")


@pytest.mark.parametrize("option", ["--rolling", None])
def test_a_restart_brings_new_code_and_loses_nothing(option: str | None, tmp_path: Path) -> None:
    lb = with_own_tasks(tmp_path)
    try:
        lb.up()
        before = pids(lb)
        client = lb.client()
        assert versions(client) == {1}
        write_version(tmp_path / "own.py", 2)
        assert versions(client) == {1}, "saving alone does nothing without --watch"
        with streaming(lb) as stream:
            done = lb.cli("restart", *([option] if option else []))
            lines = done.stdout.splitlines()
            assert lines[:3] == [f"~ worker-{number} restart" for number in (1, 2, 3)]
            assert lines[3].startswith("done in ")
            stream.flows_to(*names(1, 2, 3))
        assert versions(client) == {2}
        after = pids(lb)
        assert not set(before.values()) & set(after.values())
        assert [worker.restarts for worker in lb.state().workers] == [0, 0, 0]
        assert lb.cli("restart", "worker-2").stdout.startswith("~ worker-2 restart\ndone in ")
        assert [name for name, pid in pids(lb).items() if pid != after[name]] == ["worker-2"]
        lb.down()
    finally:
        lb.clean_up()


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("nowhere", "own.py:8: NameError: name 'nowhere' is not defined"),
        ("(", "own.py:8: SyntaxError: '(' was never closed"),
        ("__import__('os')._exit(7)", "the import ends its process (code 7)"),
    ],
)
def test_code_that_cannot_be_loaded_replaces_nobody(
    code: str, complaint: str, tmp_path: Path
) -> None:
    lb = with_own_tasks(tmp_path)
    try:
        lb.up()
        before = pids(lb)
        own = tmp_path / "own.py"
        own.write_text(own.read_text().replace("    return 1", f"    return 1\nvalue = {code}\n"))
        own.write_text(re.sub(r"#+", "", own.read_text()))
        with streaming(lb, clients=1) as stream:
            done = lb.cli("restart", "--rolling", code=2)
            assert complaint.split(":", 2)[-1] in done.stderr
            assert done.stderr.endswith("; nothing is changed\n")
            assert pids(lb) == before
            assert "failed, nothing was changed:\n" in lb.cli("status").stdout
            # workers that come new would fail as well
            assert complaint.split(":", 2)[-1] in lb.cli("scale", "4", code=2).stderr
            assert len(lb.state().workers) == 3
            stream.flow()
        assert versions(lb.client()) == {1}
        write_version(own, 3)
        lb.cli("restart", "--rolling")
        assert versions(lb.client()) == {3}
        lb.down()
    finally:
        lb.clean_up()


def test_watching_restarts_when_a_module_is_saved(tmp_path: Path) -> None:
    lb = with_own_tasks(tmp_path)
    own, helper = tmp_path / "own.py", tmp_path / "helper.py"
    helper.write_text("NUMBER = 10\n")
    own.write_text("import helper\n" + VERSION.format("helper.NUMBER"))
    try:
        lb.up("--watch")
        client = lb.client()
        assert versions(client) == {10}
        before = pids(lb)
        with streaming(lb, clients=1) as stream:
            # what the modules import is found by a trial, soon after the start
            def save_until_seen() -> bool:
                helper.write_text("NUMBER = 11  #" + str(time.monotonic()) + "\n")
                time.sleep(1.0)
                return "helper.py saved" in lb.log("supervisor")

            wait_until(save_until_seen, "a restart")
            lb.wait_for_log("supervisor", "helper.py saved: done in")
            wait_until(lambda: versions(client) == {11}, "the new code")
            helper.write_text("NUMBER = nothing\n")
            wait_for_change(lb, lambda change: "NameError" in change.get("error", ""))
            middle = pids(lb)
            assert versions(client) == {11}
            helper.write_text("NUMBER = 12000\n")
            wait_until(lambda: versions(client) == {12000}, "the code after the mistake")
            stream.flow()
        assert middle != before
        assert pids(lb) != middle
        lb.down()
    finally:
        lb.clean_up()


SLOW = """
import time
from pathlib import Path
from lbcore import task

with Path(__file__).with_name("loads").open("a") as file:
    file.write("x")
if len(Path(__file__).with_name("loads").read_text()) > 2:
    time.sleep(1.0)


@task
def hold(started: str, release: str) -> None:
    Path(started).touch()
    while not Path(release).exists():
        time.sleep(0.005)
"""


def test_a_worker_that_leaves_while_its_return_is_tried_comes_back(tmp_path: Path) -> None:
    """It has its socket as long as it is there; and that must outlive it now."""
    (tmp_path / "slow.py").write_text(SLOW)
    lb = RunningSystem(tmp_path, topology(2, tasks=False) + "tasks: [slow.py]\n")
    try:
        lb.up()
        client = lb.client()
        started = [tmp_path / f"started-{number}" for number in (1, 2)]
        release = tmp_path / "release"
        busy = [client.submit("hold", str(path), str(release)) for path in started]
        wait_until(lambda: all(path.exists() for path in started), "both at work")
        first = lb.popen("scale", "1")
        lb.wait_for(lambda state: any(w.state == "DRAIN" for w in state.workers), "DRAIN")
        second = lb.popen("scale", "2")
        loads = tmp_path / "loads"
        wait_until(lambda: loads.read_text() == "xxx", "the trial")
        release.touch()
        for future in busy:
            future.result(PATIENCE_S)
        for command in (first, second):
            _, err = command.communicate(timeout=PATIENCE_S)
            assert (command.returncode, err) == (0, "")
        wait_for_workers(lb, *names(1, 2))
        with streaming(lb, clients=1) as stream:
            stream.flows_to(*names(1, 2))
        lb.down()
    finally:
        lb.clean_up()
