"""``up --record``, and ``simulate --replay`` of what it wrote."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import Start
from tests.e2e.running import RunningSystem, wait_until

SLEEPS = [("sleep", {"seconds": 0.004})] * 60


def replay(lb: RunningSystem, *options: str) -> dict[str, Any]:
    """The rows of a replay, by policy."""
    done = lb.cli("simulate", "--replay", "a.rec", *options, "--json")
    return {row["policy"]: row for row in json.loads(done.stdout)["policies"]}


def test_a_recording_is_replayed_with_other_workers(system: Start) -> None:
    lb = system(2, start=False)
    lb.up("--record", "a.rec")
    replies = list(lb.client().stream(SLEEPS, window=30))
    assert not any(reply.status for reply in replies)
    lb.down()
    rows = replay(lb, "--workers", "8", "--policy", "round_robin,least_load")
    assert list(rows) == [
        "as recorded",
        "clairvoyant",
        "central queue",
        "round_robin",
        "least_load",
    ]
    assert rows["round_robin"]["lost"] == 0
    # 30 at a time on 2 workers had to wait; on 8 they have less to
    assert rows["as recorded"]["mean"] > 0.01
    assert rows["round_robin"]["mean"] < rows["as recorded"]["mean"]
    lb.cli("report", "a.rec")
    assert "as recorded" in (lb.folder / "report.html").read_text()
    files = ("--save", "replay.json", "--report", "replay.html")
    shown = lb.cli("simulate", "--replay", "a.rec").stdout
    assert "60 requests, replayed with the recorded workers" in shown
    assert "as recorded" in shown
    shown = lb.cli("simulate", "--replay", "a.rec", "--workers", "2", *files).stdout
    lb.cli("simulate", "--replay", "a.rec", "--workers", "8", *files)
    assert "</html>" in (lb.folder / "replay.html").read_text()
    assert lb.cli("report", "replay.json", "--out", "again.html").returncode == 0
    assert "60 requests, replayed with 2 equal workers" in shown
    assert "as recorded" in shown


def test_a_broker_that_dies_goes_on_with_the_same_file(system: Start) -> None:
    lb = system(2, start=False)
    lb.up("--record", "a.rec")
    list(lb.client().stream(SLEEPS, window=4))
    wait_until(lambda: (lb.folder / "a.rec").read_text().count("\n[") == 60, "the records")
    lb.kill("broker")
    lb.wait_for_restart("broker")
    list(lb.client().stream(SLEEPS, window=4))
    lb.down()
    lines = (lb.folder / "a.rec").read_text().splitlines()
    assert sum(line.startswith("[") for line in lines) == 120
    assert sum("lb_recording" in line for line in lines) == 1
    assert replay(lb)["least_load"]["lost"] == 0


def test_a_file_that_is_there_stops_the_start(system: Start) -> None:
    lb = system(2, start=False)
    (lb.folder / "a.rec").write_text("precious")
    done = lb.cli("up", "-d", "--record", "a.rec", code=2)
    assert done.stderr == "lb: --record a.rec: the file is there already; name another\n"
    assert (lb.folder / "a.rec").read_text() == "precious"
    assert lb.find_state() is None


def test_a_start_that_fails_leaves_no_file(system: Start) -> None:
    lb = system(2)
    lb.cli("up", "-d", "--record", "a.rec", code=4)
    assert not (lb.folder / "a.rec").exists()
