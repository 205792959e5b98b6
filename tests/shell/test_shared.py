"""The shared memory: what one process leaves, another finds."""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from lbcore.shell.shared import (
    GONE,
    RUNNING_MAX,
    STARTED_MAX,
    RingIndex,
    SharedMemory,
    Slot,
    StartedLog,
)


def in_a_fork(work: Callable[[], None]) -> None:
    """Do it in another process, and wait for that."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def fill(slot: Slot, first: int, count: int, at: float = 1.0) -> None:
    for number in range(count):
        slot.note_start(first + number, at + number)


def test_what_a_process_leaves_outlives_it() -> None:
    shared = SharedMemory(4)
    slot = shared.assign("worker-1")

    def work() -> None:
        slot.running[0] = 7
        slot.running[RUNNING_MAX - 1] = 8
        slot.note_start(9, 1.5)
        shared.clients_seen = 1 << 40

    in_a_fork(work)
    assert slot.running_ids() == (7, 8)
    assert 9 in RingIndex(slot)
    assert shared.clients_seen == 1 << 40
    slot.pid = 4711
    slot.clear_running()
    assert slot.pid == 0
    assert slot.running_ids() == ()
    assert 9 in RingIndex(slot), "what was started stays known when the process is replaced"


def test_a_worker_that_came_later_is_found_by_those_forked_before() -> None:
    shared = SharedMemory(4)
    first = shared.assign("worker-1")
    assert shared.assign("worker-1") is first
    ready, go = os.pipe()
    done, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(ready, 1)
            log = StartedLog(shared)
            log.numbers = {"worker-2": 5}
            found = [log.find(1), log.find(2), log.find(3)]
            os.write(said, repr(found).encode())
        finally:
            os._exit(0)
    shared.assign("worker-2").note_start(2, 1.0)
    first.note_start(3, 1.0)
    os.write(go, b"x")
    assert os.read(done, 100).decode() == f"[None, 5, {GONE}]"
    os.waitpid(pid, 0)
    for descriptor in (ready, go, done, said):
        os.close(descriptor)


def test_slots_do_not_overlap() -> None:
    shared = SharedMemory(2)
    one, two = shared.assign("a" * 60), shared.assign("b" * 60)
    one.running[RUNNING_MAX - 1] = one.lease = 2**64 - 1
    fill(one, 1, 3 * STARTED_MAX)
    assert (two.name, two.lease, two.started_count, two.running_ids()) == ("b" * 60, 0, 0, ())
    assert not two.overwritten_since(0.0)
    assert one.name == "a" * 60


def test_a_lease_ends_with_its_connection_and_with_its_broker() -> None:
    shared = SharedMemory(1)
    slot = shared.assign("worker-1")
    shared.begin_life()
    slot.lease = lease = shared.lease_of(1)
    assert shared.holds(slot, lease)
    slot.lease = shared.lease_of(2)
    assert not shared.holds(slot, lease)
    assert shared.holds(slot, shared.lease_of(2))
    shared.begin_life()
    assert not shared.holds(slot, slot.lease)


def test_a_start_that_was_taken_back_is_none() -> None:
    slot = SharedMemory(1).assign("worker-1")
    fill(slot, 10, 3)
    ring = RingIndex(slot)
    assert 11 in ring
    slot.take_back_start(11)
    assert 11 not in ring
    assert 10 in ring
    assert 0 not in ring
    slot.take_back_start(999)
    slot.note_start(11, 9.0)
    assert 11 in ring


def test_what_was_overwritten_is_known_by_its_time() -> None:
    slot = SharedMemory(1).assign("worker-1")
    fill(slot, 1, STARTED_MAX, at=0.0)
    assert not slot.overwritten_since(0.0)
    slot.note_start(5000, 5000.0)
    # the one that began at 0.0 is gone
    assert slot.overwritten_since(0.0)
    assert not slot.overwritten_since(0.5)


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from(("start", "back", "ask")))))
def test_the_index_of_a_ring_agrees_with_the_ring(steps: list[tuple[int, str]]) -> None:
    slot = SharedMemory(1).assign("worker-1")
    fill(slot, 1000, STARTED_MAX - 4)
    ring = RingIndex(slot)
    for number, step in steps:
        present = {slot.started_id(index) for index in range(STARTED_MAX)}
        if step == "start":
            if number not in present:
                slot.note_start(number, 1.0)
        elif step == "back":
            slot.take_back_start(number)
        else:
            assert (number in ring) == (number in present)
