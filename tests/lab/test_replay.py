"""A recording is read back as traffic: whole ones, broken ones, and those cut short."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from lbcore.core.recording import (
    FORMAT,
    Figures,
    Header,
    Record,
    RecordedWorker,
    TaskFigures,
    WorkerFigures,
)
from lbcore.core.topology import PolicyConfig
from lbcore.lab.replay import as_recorded, read_recording, recorded_detail, replayed
from lbcore.lab.scenario import ScenarioError
from lbcore.lab.trial import Trial

encode = msgspec.json.encode
HEADER = Header(
    lb_recording=FORMAT,
    name="mine",
    policy="least_load",
    workers=(RecordedWorker(0, "worker-1", 1.0, 1), RecordedWorker(1, "worker-2", 1.0, 1)),
    started="2026-01-01T00:00:00.000+00:00",
    began=100.0,
)
#: one worker of twice the speed; one task that computes, one that sleeps
FIGURES = Figures(
    at=3.0,
    queued=0,
    transit_s=0.0005,
    workers=[WorkerFigures(0, 0, 0.0, 2.0), WorkerFigures(1, 0, 0.0, 0.5)],
    tasks=(TaskFigures(0, "spin", 1.0, 1.0), TaskFigures(1, "nap", 1.0, 0.0)),
)
RECORDS = [
    Record(1.5, 1, 1, 0.0, 1.0, 0, 1),
    Record(1.0, 0, 0, 0.25, 0.5, 0, 1),
    Record(2.0, 0, 1, 0.5, 2.0, 0, 2),
]


def text(*lines: Any) -> bytes:
    return b"".join(encode(line) + b"\n" for line in lines)


WHOLE = text(HEADER, *RECORDS, FIGURES)


def test_requests_are_put_back_to_a_worker_of_speed_1() -> None:
    found = read_recording(WHOLE, "a.rec")
    scenario, traffic = replayed(found, "a")
    assert traffic.moments == [0.0, 0.5, 1.0]
    assert [scenario.tasks[place].name for place in traffic.tasks] == ["spin", "nap", "spin"]
    # a sleep takes the same everywhere
    assert traffic.sizes == pytest.approx([1.0, 1.0, 1.0])
    assert [worker.speed for worker in scenario.workers] == [2.0, 0.5]
    assert scenario.transit_s == 0.0005


def test_other_workers_and_another_pace() -> None:
    scenario, traffic = replayed(read_recording(WHOLE, "a.rec"), "a", workers=8, load=2.0)
    assert scenario.workers_count == 8
    assert {worker.speed for worker in scenario.workers} == {1.0}
    assert traffic.moments == [0.0, 0.25, 0.5]


def test_the_row_of_what_was_recorded() -> None:
    found = read_recording(WHOLE, "a.rec")
    _, traffic = replayed(found, "a")
    measures = as_recorded(found, traffic)
    assert measures.mean == pytest.approx((0.75 + 1.0 + 2.5) / 3)
    assert measures.makespan == pytest.approx(3.5)
    assert measures.worst_share == pytest.approx((2.0 / 3.0) / (0.5 / 2.5))
    assert math.isnan(measures.idle)


def test_what_a_report_shows_of_it() -> None:
    busy = msgspec.structs.replace(FIGURES, at=5.0, workers=[WorkerFigures(1, 3, 0.75, 0.5)])
    found = read_recording(text(HEADER, *RECORDS, FIGURES, busy), "a.rec")
    _, traffic = replayed(found, "a")
    detail = recorded_detail(found, traffic)
    assert detail.requests == [1, 2]
    assert detail.shares == pytest.approx([(1 / 3) / (2 / 2.5), (2 / 3) / (0.5 / 2.5)])
    assert detail.quantiles[-1] == (1.0, 2.5)
    assert detail.moments == [3.0, 5.0]
    assert detail.pending == [[0, 0], [0, 3]]
    assert detail.busy == [[0.0, 0.0], [0.0, 0.75]]


def test_every_request_of_a_replay_is_answered() -> None:
    records = [Record(each / 10, each % 2, each % 2, 0.0, 0.1, 0, 1) for each in range(200)]
    found = read_recording(text(HEADER, FIGURES, *records), "a.rec")
    scenario, traffic = replayed(found, "a", workers=4)
    measures = Trial(scenario, traffic, PolicyConfig(name="round_robin"), 1).run()
    assert measures.lost == 0
    assert 0.05 < measures.mean < 0.4


def test_a_last_line_that_is_cut_short_is_left_out() -> None:
    for cut in range(1, len(encode(RECORDS[2]))):
        found = read_recording(text(HEADER, *RECORDS)[: -cut - 1], "a.rec")
        assert found.is_truncated
        assert len(found.records) == 2


def test_a_topology_that_changed_and_records_that_were_lost() -> None:
    more = Figures(
        at=4.0,
        queued=0,
        transit_s=0.001,
        workers=[],
        lost=7,
        policy="random",
        changed=(RecordedWorker(2, "worker-3", 4.0, 2),),
    )
    found = read_recording(text(HEADER, *RECORDS, more, Record(5, 0, 2, 0, 1, 0, 1)), "a.rec")
    assert (found.policy, found.lost, len(found.workers)) == ("random", 7, 3)
    scenario, traffic = replayed(found, "a")
    # nothing was learned of it: as the topology says
    assert scenario.workers[2].speed == 4.0
    assert traffic.sizes[-1] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "a.rec is no recording of `lb up --record`"),
        (b"\x80\n", "is no recording"),
        (b'{"a": 1}\n', "is no recording"),
        (text(msgspec.structs.replace(HEADER, lb_recording=99)), "of format 99"),
        (text(HEADER), "holds no answered request"),
        (text(HEADER) + b"[1, 2]\n" + text(*RECORDS), "a.rec:2: not a line of a recording"),
        (text(HEADER) + b"nonsense\n" + text(*RECORDS), "a.rec:2: not a line of a recording"),
        (text(HEADER) + b"\n" + text(*RECORDS), "a.rec:2: not a line of a recording"),
        (text(HEADER, *RECORDS, Record(1, 0, 9, 0, 1, 0, 1)), "no worker number 9"),
        (text(HEADER, *RECORDS, Record(1, 0, 0, 0, -1, 0, 1)), "impossible times"),
        (text(HEADER, *RECORDS, Record(1, 0, 0, 1e999, 1, 0, 1)), "not a line"),
        (
            text(msgspec.structs.replace(HEADER, workers=(RecordedWorker(0, "w", 0.0, 1),)))
            + text(RECORDS[1]),
            "impossible weight",
        ),
    ],
)
def test_a_broken_one_is_one_line(data: bytes, words: str) -> None:
    if words == "not a line":
        data += text(FIGURES)
    with pytest.raises(ScenarioError) as caught:
        read_recording(data, "a.rec")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
