"""Durable requests through random histories: slow disks, full disks, deaths of all at any moment.

Every request that a client was told to be accepted has exactly one result on the disk in the end,
and what must not run twice was begun once at most, over all lives of the broker.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from lbcore.core.errors import Status
from lbcore.core.frames import Flag
from lbcore.core.records import NotWritten

from .driver import Driver

SEEDS = int(os.environ.get("LB_DURABLE_SEEDS", "150"))
STEPS = 60
KINDS = (int(Flag.DURABLE), int(Flag.DURABLE | Flag.DETACHED))


class History:
    """One random history over several lives of a broker."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        #: ids of which a client was told that they are accepted
        self.accepted: set[int] = set()
        #: how often what must not run twice was begun
        self.begun: Counter[int] = Counter()
        self.frail: set[int] = set()
        self.driver = Driver(workers=2)
        self.driver.disk.works = False
        self.clients = [self.driver.client() for _ in range(2)]

    def step(self) -> None:
        """Something happens."""
        actions = [self.send] * 4 + [self.write] * 5 + [self.answer] * 4
        self.rng.choice([*actions, self.lose, self.leave, self.fill, self.wait, self.restart])()
        self.accepted.update(request_id for _, request_id in self.driver.accepted)

    def send(self) -> None:
        client = self.rng.choice(self.clients)
        task = self.rng.choice(["short", "long", "frail"])
        count = self.rng.choice([1, 1, 3, 10])
        ids = self.driver.send(client, task, count, flags=self.rng.choice(KINDS))
        # an id that was never written before everything died may be given out again
        self.frail.difference_update(ids)
        if task == "frail":
            self.frail.update(ids)

    def write(self) -> None:
        if self.driver.disk.orders:
            self.store(self.driver.disk.next_event())

    def fill(self) -> None:
        self.store(self.driver.disk.refuse())

    def store(self, event: object) -> None:
        self.driver.perform(self.driver.broker.stored(event, self.driver.now))  # type: ignore[arg-type]

    def answer(self) -> None:
        number = self.rng.randrange(2)
        held = self.driver.held[number]
        if held:
            count = self.rng.randrange(1, len(held) + 1)
            self.begin(number, count)
            self.driver.answer(number, count)

    def begin(self, number: int, count: int) -> list[int]:
        """A worker begins its first requests."""
        ids = [held.id for held in self.driver.held[number][:count]]
        self.begun.update(each for each in ids if each in self.frail)
        return ids

    def lose(self) -> None:
        number = self.rng.randrange(2)
        running = self.begin(number, self.rng.randrange(2))
        self.driver.lose(number, running)
        self.driver.advance(2.0)
        self.driver.join(number)

    def leave(self) -> None:
        self.driver.leave(self.clients.pop(self.rng.randrange(2)))
        self.clients.append(self.driver.client())

    def wait(self) -> None:
        self.driver.advance(self.rng.choice([0.0, 0.5, 3.0]))

    def restart(self) -> None:
        """Everything dies, and starts again."""
        for number in range(2):
            self.begin(number, self.rng.randrange(2))
        disk = self.driver.disk
        self.driver = Driver(workers=2, join=False)
        self.driver.disk = disk
        disk.works = False
        self.store(disk.reopen())
        for number in range(2):
            self.driver.join(number)
        self.clients = [self.driver.client() for _ in range(2)]

    def end(self) -> None:
        """No more faults: everything must come to its end."""
        self.driver.disk.works = True
        self.driver.let_store()
        for _ in range(200):
            for number in range(2):
                held = self.driver.held[number]
                if held:
                    self.begin(number, len(held))
                    self.driver.answer(number, len(held))
            self.driver.advance(1.5)
        self.accepted.update(request_id for _, request_id in self.driver.accepted)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_accepted_request_has_one_result(seed: int) -> None:
    history = History(seed)
    for _ in range(STEPS):
        history.step()
    history.end()
    disk = history.driver.disk
    assert not disk.requests, "accepted, and never finished"
    assert not disk.begun
    assert history.accepted <= disk.results.keys()
    again = {request_id for request_id, times in history.begun.items() if times > 1}
    assert not again, "begun twice"
    for request_id in history.accepted:
        is_lost = disk.results[request_id][5] == Status.WORKER_LOST
        assert request_id in history.frail or not is_lost
    history.driver.assert_empty()


def test_a_full_disk_is_one_of_the_faults() -> None:
    history = History(0)
    history.send()
    assert isinstance(history.driver.disk.refuse(), NotWritten)
