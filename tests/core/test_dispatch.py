"""How waiting requests leave for workers."""

from __future__ import annotations

from collections.abc import Callable

from tests.core.driver import Driver
from tests.core.test_fleet import warm

Drive = Callable[..., Driver]


def test_what_starts_at_once_in_several_pieces_is_sent_once(drive: Drive) -> None:
    driver = drive(workers=2)
    client = warm(driver, "tiny", 2e-6, 40)
    # one has just joined and gets one request, the other has room for all of them
    driver.fleet.workers[0].successes = 0
    for _ in range(4):
        before = len(driver.sent)
        driver.send(client, "tiny", 10)
        sent = driver.sent[before:]
        assert len(sent) == len({request_id for _, request_id in sent}) == 10
        while driver.held[0] or driver.held[1]:
            for number in (0, 1):
                if driver.held[number]:
                    driver.answer(number, len(driver.held[number]), service_s=2e-6)
        driver.fleet.workers[0].successes = 0
    assert {number for number, _ in driver.sent[-40:]} == {0, 1}
