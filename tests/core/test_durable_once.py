"""Durable requests that must not run twice, when a broker died: begun, or only marked?"""

from __future__ import annotations

import pytest

from lbcore.core.errors import Status

from .driver import Driver
from .test_durable import DURABLE, reborn
from .test_losses import Rings


def test_what_was_sent_and_must_not_run_twice_is_lost() -> None:
    driver = Driver(workers=1)
    client = driver.client()
    first, second = driver.send(client, "frail", 2, flags=DURABLE)
    driver.perform(driver.broker.worker_recalled(0, [second], driver.now))
    assert driver.disk.begun >= {first}
    driver.disk.begun = {first}
    after = reborn(driver, workers=1)
    after.join(0)
    assert after.disk.results[first][5] == Status.WORKER_LOST
    after.finish()
    assert after.disk.results[second][5] == Status.OK
    after.assert_empty()


@pytest.mark.parametrize("is_same_run", [True, False])
def test_what_was_marked_and_never_began_is_sent_again_in_the_same_run(is_same_run: bool) -> None:
    driver = Driver(workers=2)
    client = driver.client()
    begun, waiting = driver.send(client, "frail", 2, flags=DURABLE)
    assert driver.disk.begun == {begun, waiting}
    rings = Rings()
    rings.started[begun] = -1  # a worker that the fleet has no longer
    # a broker dies soon after the start of all, and its record is older than that by its clock
    rings.began_at = driver.now - 0.1
    after = reborn(driver, workers=2, is_same_run=is_same_run, history=rings)
    after.join(0)
    after.join(1)
    after.finish()
    assert after.disk.results[begun][5] == Status.WORKER_LOST
    expected = Status.OK if is_same_run else Status.WORKER_LOST
    assert after.disk.results[waiting][5] == expected
    after.assert_empty()
