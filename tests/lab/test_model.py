"""The model of a worker: order, slots, speeds that change, and what reports are made of."""

from __future__ import annotations

import pytest

from lbcore.lab.conditions import Condition
from lbcore.lab.model import Job, WorkerModel
from lbcore.sim.world import START_S, World

Done = list[tuple[int, float, float]]


class Bench:
    """One worker, and what it was done with when."""

    def __init__(self, slots: int = 1, condition: Condition | None = None) -> None:
        self.world = World(1)
        self.done: Done = []
        self.model = WorkerModel(0, slots, condition or Condition(), self.world, self.note)

    def note(self, model: WorkerModel, job: Job, wall_s: float, cpu_s: float, failed: bool) -> None:
        assert not failed or self.model.condition.fail_s is not None
        self.done.append((job.request_id, round(self.world.now - START_S, 9), round(cpu_s, 9)))

    def take(self, request_id: int, size_s: float, cpu: float = 1.0) -> None:
        job = Job(request_id, 0, size_s, cpu)
        self.model.note_sent(job, self.world.now)
        self.model.take(job, self.world.now)

    def at(self, seconds: float) -> None:
        self.world.run(START_S + seconds)


def test_requests_run_in_order() -> None:
    bench = Bench()
    for request_id, size_s in ((1, 1.0), (2, 3.0), (3, 1.0)):
        bench.take(request_id, size_s)
    assert bench.model.finish_at(2.0, 1.0, START_S) == START_S + 7.0
    bench.at(10)
    assert bench.done == [(1, 1.0, 1.0), (2, 4.0, 3.0), (3, 5.0, 1.0)]
    assert (bench.model.served, bench.model.work_s, bench.model.busy_s) == (3, 5.0, 5.0)


def test_slots_run_side_by_side() -> None:
    bench = Bench(slots=2)
    for request_id in (1, 2, 3):
        bench.take(request_id, 2.0)
    bench.at(10)
    assert [moment for _, moment, _ in bench.done] == [2.0, 2.0, 4.0]


def test_what_runs_goes_on_at_another_speed() -> None:
    bench = Bench()
    bench.take(1, 2.0)
    bench.at(1)
    bench.model.become(Condition(speed=0.5), bench.world.now)
    bench.at(10)
    assert bench.done == [(1, 3.0, 3.0)]


def test_a_stalled_worker_goes_on_where_it_stood() -> None:
    bench = Bench()
    bench.take(1, 2.0)
    bench.at(1)
    bench.model.become(Condition(is_stalled=True), bench.world.now)
    bench.at(50)
    assert not bench.done
    assert not bench.model.has_room
    bench.model.become(Condition(), bench.world.now)
    bench.at(60)
    assert [moment for _, moment, _ in bench.done] == [51.0]


def test_a_neighbour_takes_a_part_of_the_core_and_nothing_of_a_sleep() -> None:
    bench = Bench(condition=Condition(core=0.25))
    bench.take(1, 1.0, cpu=1.0)
    bench.take(2, 1.0, cpu=0.0)
    bench.at(10)
    assert bench.done == [(1, 4.0, 1.0), (2, 5.0, 0.0)]
    assert (bench.model.core_cpu_s, bench.model.core_delay_s) == (1.0, 3.0)


def test_what_has_not_begun_is_given_back() -> None:
    bench = Bench()
    for request_id in (1, 2, 3):
        bench.take(request_id, 1.0)
    assert bench.model.give_back(bench.world.now) == [2, 3]
    assert bench.model.finish_at(1.0, 1.0, START_S) == START_S + 2.0
    bench.at(10)
    assert [request_id for request_id, _, _ in bench.done] == [1]


def test_a_failing_worker_fails_at_once() -> None:
    bench = Bench(condition=Condition(fail_s=0.001))
    bench.take(1, 5.0)
    bench.at(1)
    assert bench.done == [(1, 0.001, 0.0)]
    assert bench.model.served == 0


@pytest.mark.parametrize("request_id", [1, 2])
def test_what_is_dropped_is_not_done(request_id: int) -> None:
    bench = Bench()
    bench.take(1, 1.0)
    bench.take(2, 1.0)
    assert bench.model.drop(request_id, bench.world.now)
    assert not bench.model.drop(3, bench.world.now)
    bench.at(10)
    assert [(each, moment) for each, moment, _ in bench.done] == [(3 - request_id, 1.0)]


def test_a_crash_ends_everything() -> None:
    bench = Bench()
    bench.take(1, 1.0)
    bench.take(2, 1.0)
    assert bench.model.crash(bench.world.now) == [1]
    bench.at(10)
    assert not bench.done
