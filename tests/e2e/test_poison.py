"""Requests that kill their workers, and what runs beside them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lbcore.core.errors import Quarantined, WorkerLost
from tests.conftest import Start
from tests.e2e.running import wait_until


def test_what_must_not_run_twice_does_not_though_it_is_tiny(system: Start, tmp_path: Path) -> None:
    lb = system(2)
    trace = tmp_path / "trace"
    trace.touch()
    calls: list[tuple[str, dict[str, object]]] = [
        ("mark_once", {"trace": str(trace), "word": str(index)}) for index in range(600)
    ]
    calls[300] = ("mark_once", {"trace": str(trace), "word": "300", "then_die": True})
    errors = {
        reply.index: error
        for reply in lb.client().stream(calls, window=400)
        if (error := reply.error()) is not None
    }
    assert 300 in errors
    assert all(isinstance(error, WorkerLost) for error in errors.values())
    counted = Counter(trace.read_text().split())
    assert [word for word, times in counted.items() if times > 1] == []
    # all that was not refused has run
    assert set(map(str, range(600))) - set(counted) <= {str(index) for index in errors}


def test_poison_does_not_stop_the_system(system: Start) -> None:
    lb = system(2)
    client = lb.client()
    futures = [client.submit("die", "exit") for _ in range(4)]
    for future in futures:
        assert isinstance(future.exception(timeout=60), Quarantined)
    assert client.call("noop", timeout=30) is None
    assert lb.state().state == "RUNNING"


def test_quick_requests_do_not_wait_behind_a_nap_in_a_pool(system: Start) -> None:
    lb = system("{count: 1, concurrency: 2}")
    client = lb.client()
    for _ in range(20):
        client.call("sleep", seconds=0.0)
    nap = client.submit("sleep", seconds=3.0)
    wait_until(lambda: client.status()["workers"][0]["pending"], "the nap")
    quick = [client.submit("sleep", seconds=0.0) for _ in range(60)]
    for future in quick:
        future.result(timeout=30)
        assert not nap.done()
    assert nap.result(timeout=30) == 3.0
