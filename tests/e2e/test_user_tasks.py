"""Tasks of a user's own: from a file or a module, with prints, as coroutines, many at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, together, topology, wait_until

MODULE = '''
from lbcore import task

@task(name="shop.total", aliases=("total",), weight=2, cost=0.5)
def total(prices: list[float], discount: float = 0.0) -> float:
    """Add up prices.

    More about it.
    """
    return sum(prices) * (1 - discount)
'''


def test_tasks_come_from_files_and_modules(system: Start) -> None:
    lb = system(yaml="broker: {port: 0}\nworkers: 1\ntasks: [shop.py, kit.more]\n", start=False)
    (lb.folder / "shop.py").write_text(MODULE)
    (lb.folder / "kit").mkdir()
    (lb.folder / "kit" / "__init__.py").touch()
    (lb.folder / "kit" / "more.py").write_text(
        "from lbcore import task\n@task\ndef double(number: int) -> int:\n    return 2 * number\n"
    )
    lb.up()
    client = lb.client()
    assert client.call("shop.total", [1.5, 2], discount=0.5) == 1.75
    assert client.call("total", prices=[4.0]) == 4.0
    assert client.call("double", 21) == 42
    facts = next(task for task in client.tasks() if task["name"] == "shop.total")
    assert (facts["weight"], facts["cost"], facts["aliases"]) == (2, 0.5, ["total"])
    assert facts["doc"].startswith("Add up prices.")
    assert facts["signature"] == "(prices: list[float], discount: float = 0.0)"


# ---- prints --------------------------------------------------------------------------------------


def test_prints_are_in_the_log_at_once_with_their_request(
    shared: RunningSystem, tmp_path: Path
) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    text = f"halfway {tmp_path.name}"
    future = shared.client().submit("say_and_hold", text, str(started), str(release))
    wait_until(started.exists, "the task")
    # it still runs: nothing may be buffered
    wait_until(lambda: text in shared.log("worker-1") + shared.log("worker-2"), "the print")
    assert not future.done()
    release.touch()
    future.result(PATIENCE_S)
    logs = shared.log("worker-1") + shared.log("worker-2")
    assert re.search(rf"^.* OUT +worker-[12] \[\d+:\d+\] {text}$", logs, re.MULTILINE)


def test_a_print_without_an_end_of_line_and_one_on_stderr(shared: RunningSystem) -> None:
    shared.client().call("say", "no newline", error="on stderr", end="")
    logs = shared.log("worker-1") + shared.log("worker-2")
    assert re.search(r"^.* OUT +worker-[12] \[\d+:\d+\] no newline$", logs, re.MULTILINE)
    assert re.search(r"^.* ERR +worker-[12] \[\d+:\d+\] on stderr$", logs, re.MULTILINE)


def test_prints_while_importing_are_in_the_log(shared: RunningSystem) -> None:
    for name in ("worker-1", "worker-2"):
        assert "the tasks for tests are imported" in shared.log(name)


# ---- many at once --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """One worker that runs four requests at once."""
    made = RunningSystem(tmp_path_factory.mktemp("wide"), topology("{count: 1, concurrency: 4}"))
    try:
        made.up()
        yield made
        made.down()
    finally:
        made.clean_up()


def test_blocking_tasks_overlap_in_threads(wide: RunningSystem) -> None:
    client = wide.client()
    client.call("leave")
    # each returns only when all four are there
    futures = [client.submit("meet", 4) for _ in range(4)]
    assert len({future.result(PATIENCE_S) for future in futures}) == 4


def test_coroutines_overlap_in_one_thread(wide: RunningSystem) -> None:
    client = wide.client()
    client.call("leave")
    futures = [client.submit("meet_async", 4) for _ in range(4)]
    assert len({future.result(PATIENCE_S) for future in futures}) == 1


def test_threads_and_coroutines_overlap(wide: RunningSystem) -> None:
    client = wide.client()
    client.call("leave")
    futures = [client.submit(task, 4) for task in ("meet", "meet_async", "meet", "meet_async")]
    assert len({future.result(PATIENCE_S) for future in futures}) == 3


def test_no_more_than_its_concurrency_run_at_once(wide: RunningSystem, tmp_path: Path) -> None:
    client = wide.client()
    release = tmp_path / "release"
    started = [tmp_path / f"started-{number}" for number in range(6)]
    futures = [client.submit("hold", str(path), str(release)) for path in started]
    wait_until(lambda: sum(path.exists() for path in started) == 4, "four tasks")
    status = client.status()
    assert status["workers"][0]["pending"] + status["broker"]["queued"] == 6
    assert sum(path.exists() for path in started) == 4
    release.touch()
    for future in futures:
        assert future.result(PATIENCE_S) == "worker-1"


def test_prints_of_concurrent_requests_keep_their_requests(wide: RunningSystem) -> None:
    client = wide.client()
    calls = [("say", {"text": f"text-{number}-end"}) for number in range(200)]
    names = {
        reply.index: f"{reply.request_id >> 32}:{reply.request_id & 0xFFFFFFFF}"
        for reply in client.stream(calls)
    }
    found = dict(re.findall(r"\[(\d+:\d+)\] text-(\d+)-end$", wide.log("worker-1"), re.MULTILINE))
    assert found == {name: str(index) for index, name in names.items()}


def test_failures_of_concurrent_requests_stay_apart(wide: RunningSystem) -> None:
    client = wide.client()
    calls = [
        ("fail", {"what": "exit"})
        if number % 3 == 0
        else ("fail_async", {"what": "interrupt"})
        if number % 3 == 1
        else ("echo", {"value": number})
        for number in range(90)
    ]
    for reply in client.stream(calls):
        error = reply.error()
        if reply.index % 3 == 2:
            assert error is None
            assert reply.value() == reply.index
        else:
            assert error is not None
            assert error.detail["type"] == ("SystemExit", "KeyboardInterrupt")[reply.index % 3]


def test_a_coroutine_in_a_worker_of_one(shared: RunningSystem) -> None:
    client = shared.client()
    assert client.call("pause", 0.01) == 0.01
    assert together(*[lambda: client.call("pause", 0.02)] * 6) == [0.02] * 6


# ---- what a worker is given ----------------------------------------------------------------------


def test_a_worker_gets_its_settings(system: Start) -> None:
    cpu = max(os.sched_getaffinity(0))
    lb = system(
        f"\n  - {{name: tuned, nice: 5, cpus: [{cpu}], env: {{OMP_NUM_THREADS: 2, GREETING: hi}}}}"
        "\n  - {name: plain, tags: [spare]}"
    )
    client = lb.client()
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GREETING"]

    found: dict[str, dict[str, Any]] = {}

    def both_answered() -> bool:
        # two at once go to two workers
        future, facts = client.submit("settings"), client.call("settings")
        found.update({each["name"]: each for each in (facts, future.result(PATIENCE_S))})
        return len(found) == 2

    wait_until(both_answered, "both workers")
    ours = sorted(os.sched_getaffinity(0))
    base = os.getpriority(os.PRIO_PROCESS, 0)
    assert found["tuned"] == {
        "nice": base + 5 if base else 5,
        "cpus": [cpu],
        "input": "",
        "name": "tuned",
    }
    assert found["plain"] == {"nice": base, "cpus": ours, "input": "", "name": "plain"}
    seen = []
    for _ in range(20):
        future, facts = client.submit("environment", names), client.call("environment", names)
        seen += [facts, future.result(PATIENCE_S)]
    one = dict.fromkeys(names[:3], "1")
    assert {**one, "OMP_NUM_THREADS": "2", "GREETING": "hi"} in seen
    assert {**one, "GREETING": None} in seen
    assert [worker["tags"] for worker in client.status()["workers"]] == [[], ["spare"]]


def test_a_core_that_is_not_there_is_refused(system: Start) -> None:
    lb = system("[{name: a, cpus: [4000]}]", start=False)
    error = lb.cli("up", "-d", code=2).stderr
    assert "4000" in error
    assert "a" in error
    lb.check_gone()
