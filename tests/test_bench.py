"""The benchmark's own machinery: arithmetic, table, JSON, skipping, agents; no figure is judged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.choice import choice_cost
from bench.contender import BenchError
from bench.lb_contender import value_length
from bench.lb_system import topology_text
from bench.measure import (
    Pair,
    Spread,
    calibrate,
    drive,
    pair_ratios,
    percentile,
    summarize_latencies,
)
from bench.peers.gearman import HEADER, WORK_COMPLETE, Packets
from bench.peers.zmq_broker import ZmqBroker
from bench.registry import CONTENDERS, GROUPS, load_contender
from bench.remote import Remote
from bench.report import report_json, report_text
from bench.results import Comparison, Figure, Goal, RowResult, Skipped
from bench.rows import FLOORS, MANY_PAIRS, SINGLE_PAIRS, ManyProbe
from bench.session import Session, Settings, group_of

ROOT = Path(__file__).resolve().parent.parent
MACHINE = {
    "cores_usable": 2,
    "processor": "a processor with a name so long that it would never fit into one line of text",
    "kernel": "Linux 6.1",
    "python": "3.11.7",
    "load_average": [0.1, 0.2, 0.3],
}


def goal(value: float | None, **changes: object) -> Goal:
    fields: dict[str, object] = {"text": "it", "bound": "at most", "limit": 2.0, "unit": "x"}
    return Goal(value=value, **{**fields, **changes})  # type: ignore[arg-type]


def make_row() -> RowResult:
    pairs = (Pair(1_234_567.0, 52_000.0), Pair(800_000.0, 50_000.0), Pair(900_000.0, None))
    row = RowResult(key="thousand", title="no-op, 1,000 in flight", unit="requests/s")
    for _, mode, peer in MANY_PAIRS:
        title = load_contender(peer).title
        row.comparisons.append(Comparison(lb_mode=mode, peer=peer, peer_title=title, pairs=pairs))
    row.comparisons.append(Comparison(lb_mode="call, Unix", peer="", peer_title="", pairs=pairs))
    row.figures.append(Figure(name="at rest, RSS", values=(30.0, 31.0, 32.0), unit="MiB"))
    row.figures.append(Figure(name="nothing", values=(), unit="MiB"))
    row.goals += [
        goal(2.5, text="100,000 requests waiting, RSS growth", unit="MiB", limit=100.0),
        goal(None),
        goal(3.0),
        goal(1.4, aim=1.5),
    ]
    row.notes.append("2 of 5 rounds")
    return row


def make_report(rows: list[RowResult]) -> dict[str, object]:
    skipped = [
        Skipped(
            name="zmq",
            title="pyzmq broker, tuned",
            reason="zmq not found",
            install="pip install pyzmq",
        )
    ]
    return report_json(
        machine=MACHINE,
        settings={"rounds": 5, "quick": False},
        versions={"pyzmq": "27", "lb": "0.1"},
        rows=rows,
        skipped=skipped,
        seconds=12.3,
    )


# ---- arithmetic --------------------------------------------------------------------------------


def test_ratios_are_taken_pair_by_pair() -> None:
    pairs = [Pair(10.0, 1.0), Pair(100.0, 50.0), Pair(30.0, 10.0)]
    assert pair_ratios(pairs) == [10.0, 2.0, 3.0]
    # the ratio of the medians would be 3, too, but of 30 and 10; shift one and they part
    pairs[2] = Pair(30.0, 60.0)
    assert Spread.of(pair_ratios(pairs)) == Spread(0.5, 2.0, 10.0)


def test_a_pair_without_both_sides_has_no_ratio() -> None:
    assert pair_ratios([Pair(None, 1.0), Pair(1.0, None), Pair(1.0, 0.0)]) == []
    assert Spread.of([]) is None


def test_percentiles_by_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile([7.0], 0.9) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_latencies_are_summarized_in_microseconds() -> None:
    summary = summarize_latencies([0.000_03, 0.000_01, 0.000_02])
    assert summary["p50_us"] == pytest.approx(20.0)
    assert summary["mean_us"] == pytest.approx(20.0)
    assert summary["p99_us"] == pytest.approx(30.0)


@pytest.mark.parametrize("rate", [50.0, 10_000.0, 3_000_000.0])
def test_calibration_finds_the_count_for_the_time(rate: float) -> None:
    counts: list[int] = []

    def run(count: int) -> float:
        counts.append(count)
        return count / rate

    found = calibrate(run, target_s=1.0, start=20)
    assert found == pytest.approx(rate, rel=0.01)
    assert len(counts) < 12
    assert sum(counts) / rate < 3.0


def test_calibration_keeps_to_its_bounds() -> None:
    assert calibrate(lambda count: 100.0, target_s=1.0, start=20) == 20
    assert calibrate(lambda count: 0.0, target_s=1.0, start=20, maximum=500) == 500


@pytest.mark.parametrize(("count", "window"), [(0, 5), (3, 5), (5, 5), (50, 7)])
def test_drive_never_has_more_than_its_window_unanswered(count: int, window: int) -> None:
    waiting: list[int] = []
    submitted, most = 0, 0

    def submit() -> int:
        nonlocal submitted, most
        submitted += 1
        waiting.append(submitted)
        most = max(most, len(waiting))
        return submitted

    assert drive(submit, waiting.remove, count, window) >= 0.0
    assert (submitted, waiting, most) == (count, [], min(count, window))


# ---- results and report ------------------------------------------------------------------------


def test_a_goal_is_met_missed_or_not_measured() -> None:
    assert goal(2.0).met is True
    assert goal(2.1).met is False
    assert goal(None).met is None
    assert goal(2.0, bound="at least").met is True
    assert goal(1.9, bound="at least").met is False
    assert (goal(1.6, aim=1.5).met, goal(1.6, aim=1.5).aim_met) == (True, False)


def test_a_row_finds_its_medians() -> None:
    row = make_row()
    assert row.ratio_to("executor", "submit") == pytest.approx((1_234_567 / 52_000 + 16) / 2)
    assert row.ratio_to("relay") is None
    assert row.lb_figure("submit") == 900_000.0
    assert row.lb_figure("call") is None
    assert row.figure("at rest, RSS") == 31.0
    assert row.figure("nothing") is None


def test_the_report_fits_80_columns_and_says_everything() -> None:
    rows = [make_row(), RowResult(key="boot", title="up -d to ready", unit="s")]
    text = report_text(make_report(rows), rows)
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "1,234,567" not in text  # medians, not single figures
    assert "19.87 (16.00 .. 23.74)" in text
    assert "pip install pyzmq" in text
    assert text.count("MISSED") == 1
    assert "met+aim" in text
    assert "not measured" in text


def test_the_json_holds_every_pair_and_every_verdict() -> None:
    report = json.loads(json.dumps(make_report([make_row()])))
    assert set(report) == {
        "schema",
        "machine",
        "settings",
        "versions",
        "rows",
        "goals",
        "skipped",
        "seconds",
    }
    comparison = report["rows"][0]["comparisons"][0]
    assert comparison["pairs"][1] == {"lb": 800_000.0, "peer": 50_000.0, "ratio": 16.0}
    assert comparison["ratio"]["min"] == 16.0
    assert [each["met"] for each in report["goals"]] == [True, None, False, True]
    assert report["skipped"][0]["install"] == "pip install pyzmq"


# ---- contenders --------------------------------------------------------------------------------


def test_every_contender_is_in_one_group_and_every_pair_is_known() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(CONTENDERS)
    for name in CONTENDERS:
        assert load_contender(name).name == name
        assert group_of(name) in GROUPS
    peers = {peer for _, _, peer in (*MANY_PAIRS, *SINGLE_PAIRS)}
    assert peers <= set(CONTENDERS)
    assert set(FLOORS) <= peers


def test_a_missing_peer_is_skipped_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ZmqBroker, "modules", ("no_such_module",))
    said: list[str] = []
    settings = Settings(only=frozenset({"zmq"}))
    row = RowResult(key="hundred", title="no-op, 100 in flight", unit="requests/s")
    with Session(settings=settings, folder=tmp_path, say=said.append) as session:
        assert session.plan([("lb", "stream", "zmq"), ("lb", "submit", "zmq")]) == []
        session.compare(row, ManyProbe(100, 0.01), lb="lb", mode="stream", peer="zmq", rounds=1)
    assert row.comparisons == []
    assert [(each.name, each.reason) for each in session.skipped] == [
        ("zmq", "no_such_module not found")
    ]
    assert session.skipped[0].install == "pip install pyzmq"
    assert len(said) == 1
    assert "pip install pyzmq" in said[0]
    assert session.failed == []


def test_the_plan_measures_each_side_once_when_the_other_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ZmqBroker, "modules", ("no_such_module",))
    pairs = [
        ("lb", "stream", "zmq-plain"),
        ("lb", "stream", "zmq"),
        ("lb", "stream", "executor"),
        ("lb", "submit", "executor"),
        ("lb", "call", "zmq"),
    ]

    def planned(*groups: str) -> list[tuple[str, str]]:
        settings = Settings(only=frozenset(groups))
        with Session(settings=settings, folder=tmp_path, say=lambda text: None) as session:
            return [(mode, peer) for _, mode, peer in session.plan(pairs)]

    both = [("stream", "executor"), ("submit", "executor"), ("call", "zmq")]
    assert planned("lb", "executor", "zmq") == both
    assert planned("executor", "zmq") == [("stream", "executor")]
    assert planned("lb") == [("stream", "zmq-plain"), ("submit", "executor"), ("call", "zmq")]


def test_a_contender_that_fails_is_dropped_and_the_other_side_goes_on(tmp_path: Path) -> None:
    class Failing:
        """Measures one round of the floor, then fails."""

        rounds = 0

        def prepare(self, remote: Remote, mode: str) -> dict[str, Any]:
            return {"count": 5}

        def measure(self, remote: Remote, arguments: dict[str, Any]) -> float:
            self.rounds += 1
            operation = "single" if self.rounds == 1 else "no such operation"
            return float(remote.ask(operation, **arguments)["p50_us"])

    row = RowResult(key="single", title="one at a time", unit="us")
    settings = Settings(only=frozenset({"relay"}))
    with Session(settings=settings, folder=tmp_path, say=lambda text: None) as session:
        session.compare(row, Failing(), lb="lb", mode="call", peer="relay", rounds=5)
    assert session.failed == ["relay"]
    assert "no operation 'no such operation'" in session.skipped[0].reason
    assert len(row.comparisons[0].pairs) == 1


@pytest.mark.parametrize("name", ["relay", "relay-unix", "executor"])
def test_an_agent_measures_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    with Remote(name, tmp_path) as remote:
        summary = remote.ask("single", count=20)
        assert 0 < summary["p50_us"] <= summary["p99_us"]
        if name == "executor":
            assert remote.ask("many", count=50, in_flight=10, mode="submit")["rate"] > 0
        else:
            with pytest.raises(BenchError, match="has no measurement with many in flight"):
                remote.ask("many", count=50, in_flight=10, mode="submit")
        group = remote.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_agent_that_cannot_start_says_why(tmp_path: Path) -> None:
    remote = Remote("rabbit", tmp_path)
    with pytest.raises(BenchError, match="last words: KeyError: 'rabbit'"), remote:
        pass


def test_gearman_packets_survive_any_cut() -> None:
    def answer(data: bytes) -> bytes:
        return HEADER.pack(b"\0RES", WORK_COMPLETE, len(data)) + data

    here, there = socket.socketpair()
    with here, there:
        packets = Packets(there)
        stream = answer(b"H:1\0") + answer(b"") + answer(b"x" * 100)
        found: list[tuple[int, bytes]] = []
        for start in range(0, len(stream), 7):
            here.sendall(stream[start : start + 7])
            found += packets.receive()
        assert found == [(WORK_COMPLETE, data) for data in (b"H:1\0", b"", b"x" * 100)]
        here.close()
        with pytest.raises(EOFError):
            list(packets.receive())


@pytest.mark.parametrize("whole_request", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_cost_per_choice_is_measured(mixed: bool, whole_request: bool) -> None:
    costs = choice_cost(mixed=mixed, whole_request=whole_request, rounds=2, slice_s=0.005)
    assert len(costs) == 2
    assert all(few > 0 and many > 0 for few, many in costs)


@pytest.mark.parametrize("unix", [False, True])
def test_the_topology_of_the_benchmark_is_a_good_one(unix: bool, tmp_path: Path) -> None:
    from lbcore.shell.config_file import load

    file = tmp_path / "config.yaml"
    file.write_text(topology_text(unix=unix, workers=3))
    topology = load(file, environ={})
    assert len(topology.workers) == 3
    assert (topology.broker.path is not None) == unix


def test_the_waiting_requests_are_as_long_as_they_say() -> None:
    msgspec = pytest.importorskip("msgspec")
    for body_bytes in (41, 100, 264):
        body = msgspec.msgpack.encode({"value": "x" * value_length(body_bytes)})
        assert len(body) == body_bytes
    for body_bytes in (10, 40, 265):
        with pytest.raises(ValueError, match="no text value"):
            value_length(body_bytes)


# ---- the command -------------------------------------------------------------------------------


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "bench" / "run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_floor_alone_through_the_command(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run_bench("--quick", "--only", "relay", "--rows", "single", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "relay floor, TCP" in done.stdout
    assert "its figures mean nothing" in done.stdout
    report = json.loads(file.read_text())
    assert [each["peer"] for each in report["rows"][0]["comparisons"]] == list(FLOORS)
    assert all(each["peer_figures"]["median"] > 0 for each in report["rows"][0]["comparisons"])
    assert report["machine"]["cores"] >= 1
    assert report["settings"]["only"] == ["relay"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--only", "zmq,rabbit"), "unknown: rabbit; known: lb, relay"),
        (("--rows", "everything"), "unknown: everything; known: thousand"),
        (("--rounds", "0"), "'0' is not a number of rounds"),
        (("--json", "/no/such/folder/figures.json"), "cannot write /no/such/folder"),
    ],
)
def test_bad_options_are_one_clear_line(arguments: tuple[str, ...], expected: str) -> None:
    done = run_bench(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
