"""Requests told apart by size: the class of a size, where it is read, and what is learned."""

from __future__ import annotations

import msgspec
import pytest

from lbcore.core.costs import TaskCost
from lbcore.core.frames import reply_frame, request_frame
from lbcore.core.sizes import (
    DECODED_BYTES_MAX,
    SIZE_CLASSES,
    TASK_BITS,
    TASK_MASK,
    CostTable,
    SizedTasks,
    size_class,
    size_of,
)
from tests.core.driver import Driver, spec

encode = msgspec.msgpack.encode
SIZED = {**spec("sort", 1.0), "size": {"name": "n", "place": 0}}


def body(value: object) -> bytes:
    return encode([[value], {}])


def test_classes_go_by_half_octaves() -> None:
    assert [size_class(size) for size in (0, 1, 3, 7, 15, 1e300)] == [1, 3, 5, 7, 9, 63]
    assert size_class(1000) == size_class(1100)
    assert size_class(2000) == size_class(1000) + 2


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ([[1000], {}], 1000.0),
        ([[], {"n": 1000}], 1000.0),
        ({"n": 1000}, 1000.0),
        ([["abc"], {}], 3.0),
        ([[[1, 2]], {}], 2.0),
        ([[{"a": 1}], {}], 1.0),
        ([[b"12345"], {}], 5.0),
        ([[-2.5], {}], 2.5),
        ([[], {}], None),
        ([[True], {}], None),
        ([[None], {}], None),
        ([[float("nan")], {}], None),
        ([[float("inf")], {}], None),
        ({"m": 1}, None),
        (7, None),
        ([1, 2], None),
    ],
)
def test_a_size_is_read_where_it_may_stand(arguments: object, size: float | None) -> None:
    assert size_of(encode(arguments), "n", 0) == size


@pytest.mark.parametrize("data", [b"\xc1", b"\x92", b"\x91" * 3000, b"\xff" * 30])
def test_a_body_that_makes_no_sense_has_no_size(data: bytes) -> None:
    assert size_of(data, "n", 0) is None or data[0] == 0xFF


def test_a_large_body_counts_by_its_length() -> None:
    data = body(b"x" * DECODED_BYTES_MAX)
    assert size_of(data, "n", 0) == len(data)


def test_an_argument_without_a_place_is_found_by_its_name_only() -> None:
    assert size_of(encode([[5], {}]), "n", -1) is None
    assert size_of(encode([[5], {"n": 6}]), "n", -1) == 6.0


def test_what_a_worker_says_of_a_size_is_checked() -> None:
    sized = SizedTasks()
    for size in (None, 3, {}, {"name": 3, "place": 0}, {"name": "n", "place": "0"}):
        sized.note(4, {"size": size})
        assert sized.kinds(4) == [4]
    sized.note(4, SIZED)
    assert len(sized.kinds(4)) == SIZE_CLASSES
    frame = request_frame(1, 4, body(1000))
    assert sized.kind(frame) == 4 | size_class(1000) << TASK_BITS
    assert sized.kind(request_frame(1, 4)) == 4
    assert sized.kind(request_frame(1, 5, body(1000))) == 5


def test_a_size_that_was_never_seen_is_guessed_from_its_neighbours() -> None:
    costs = CostTable()
    costs[3] = TaskCost(1.0)
    near = 3 | 21 << TASK_BITS
    assert costs[near].mean_s == 1.0
    costs[near].learn(0.5, 1, 1.0, 1.0, -1.0)
    assert costs[3 | 23 << TASK_BITS].mean_s == pytest.approx(1.0)
    assert costs[3 | 19 << TASK_BITS].mean_s == pytest.approx(0.25)
    with pytest.raises(KeyError):
        costs[4 | 1 << TASK_BITS]
    with pytest.raises(KeyError):
        costs[4]


def sized_driver(workers: int = 2, **more: object) -> Driver:
    return Driver(workers, tasks=[SIZED, spec("short", 0.1)], **more)  # type: ignore[arg-type]


def submit(driver: Driver, client: int, sizes: list[int]) -> list[int]:
    frames, ids = [], []
    for size in sizes:
        driver.sequence[client] += 1
        ids.append(client << 32 | driver.sequence[client])
        frames.append(request_frame(ids[-1], 0, body(size)))
    driver.from_client(client, b"".join(frames))
    return ids


def answer(driver: Driver, number: int, seconds_each: float) -> None:
    """A worker answers everything it has; each takes so long for each unit of its size."""
    frames = []
    for held in list(driver.held[number]):
        size = size_of(held.body, "n", 0) or 0.0
        frames.append(reply_frame(held.id, held.task, b"\xc0", service_s=size * seconds_each))
        driver.held[number].remove(held)
    driver.from_worker(number, b"".join(frames))


def drain(driver: Driver, seconds_each: float = 0.001) -> None:
    while any(driver.held[number] for number in range(len(driver.fleet.workers))):
        for number in range(len(driver.fleet.workers)):
            if driver.held[number]:
                answer(driver, number, seconds_each)


def test_each_size_has_a_cost_of_its_own() -> None:
    driver = sized_driver()
    client = driver.client()
    ids = submit(driver, client, [100, 100, 10_000, 100, 10_000, 7, 100] * 20)
    drain(driver)
    assert sorted(driver.answered_ids(client)) == ids
    costs = driver.fleet.costs
    assert costs[size_class(100) << TASK_BITS].mean_s == pytest.approx(0.1, rel=0.05)
    assert costs[size_class(10_000) << TASK_BITS].mean_s == pytest.approx(10.0, rel=0.05)
    assert costs[0].count == len(ids), "and what the task costs in all is known too"
    assert {kind & TASK_MASK for kind in costs} == {0, 1}
    driver.assert_empty()


def test_a_large_one_keeps_its_worker_for_longer() -> None:
    driver = sized_driver()
    client = driver.client()
    submit(driver, client, [10, 1000] * 30)
    drain(driver)
    driver.advance(1.0)
    submit(driver, client, [1000, 10])
    (large,) = [n for n in (0, 1) if any(size_of(h.body, "n", 0) == 1000 for h in driver.held[n])]
    backlogs = [worker.backlog_s(driver.now) for worker in driver.fleet.workers]
    assert backlogs[large] == pytest.approx(1.0, rel=0.1)
    assert backlogs[1 - large] == pytest.approx(0.01, rel=0.2)


def test_what_comes_back_from_a_lost_worker_keeps_its_size() -> None:
    driver = sized_driver(1)
    client = driver.client()
    ids = submit(driver, client, [10, 1000, 10])
    driver.lose(0, [ids[0]], requests=[ids[0]])
    driver.join(0)
    drain(driver)
    while driver.ledger.queue.count or driver.held[0]:
        drain(driver)
    assert sorted(driver.answered_ids(client)) == ids
    driver.assert_empty()
