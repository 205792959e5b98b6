"""The examples work as they are: checked, loaded, and run against a real system."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lbcore.shell.config_file import load
from lbcore.shell.state import read_state
from lbcore.shell.tasks import ArgumentError, encode_result, load_tasks

REPOSITORY = Path(__file__).resolve().parent.parent
EXAMPLES = REPOSITORY / "examples"
TASKS = load_tasks(["my_tasks.py"], EXAMPLES)


def request(name: str, **arguments: Any) -> Any:
    value = TASKS[name].run(msgspec.msgpack.encode(arguments))
    return msgspec.msgpack.decode(encode_result(value, name))


def test_the_topology_is_right_and_names_the_tasks() -> None:
    topology = load(EXAMPLES / "topology.yaml", environ={})
    assert len(topology.workers) == 3
    loaded = load_tasks(topology.tasks, EXAMPLES)
    assert {"word_count", "mandelbrot", "fetch", "fetch_all", "checkout"} <= set(loaded)


def test_the_tasks_do_what_they_say() -> None:
    assert request("word_count", text="to be or not to be", top=1) == {"to": 2}
    picture = request("mandelbrot", width=40, height=10)
    assert [len(line) for line in picture] == [40] * 10
    assert "@" in "".join(picture)
    assert request("fetch", url="x", seconds=0) == "content of x"
    order = {"item": "tea", "price": 2, "count": 3}
    assert request("checkout", orders=[order], discount=0.5) == {"items": 3, "total": 3.0}


def test_their_mistakes_are_the_ones_in_the_documentation() -> None:
    with pytest.raises(ArgumentError, match=r"^checkout: orders\[0\]\.price: expected `float`"):
        request("checkout", orders=[{"item": "tea", "price": "much"}])
    with pytest.raises(ValueError, match="the discount must be in"):
        request("checkout", orders=[], discount=2)


def test_every_task_is_documented_and_fits_a_table() -> None:
    assert all(10 <= len(task.doc) <= 100 for task in TASKS.values())


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )


def test_the_client_runs_against_a_real_system(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples", ignore=shutil.ignore_patterns("logs", ".lb"))
    config = tmp_path / "examples" / "topology.yaml"
    config.write_text(re.sub(r"port: \d+", "port: 0", config.read_text()))
    started = run("lb.py", "up", "-d", "-c", str(config))
    try:
        assert started.returncode == 0, started.stderr
        state = read_state(load(config, environ={}))
        assert state is not None
        port = str(state.broker.address).rpartition(":")[2]
        finished = run("-m", "examples.client", port)
    finally:
        stopped = run("lb.py", "down", "-c", str(config))
    assert finished.returncode == 0, finished.stderr
    assert "the task raised ValueError: the discount must be in" in finished.stdout
    assert "9,592 primes below 100,000" in finished.stdout
    assert "'worker-1'" in finished.stdout
    assert stopped.returncode == 0, stopped.stderr
    assert read_state(load(config, environ={})) is None


def test_without_a_system_the_client_says_so() -> None:
    finished = run("-m", "examples.client", "1")
    assert finished.returncode == 3
    assert finished.stderr.startswith("error: ")
    assert len(finished.stderr.splitlines()) == 1
