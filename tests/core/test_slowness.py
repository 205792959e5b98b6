"""What a worker's slowness is put down to: its core, or itself."""

from __future__ import annotations

from collections.abc import Callable

from lbcore.core.topology import PolicyConfig
from tests.core.driver import Driver, spec
from tests.core.test_fleet import warm

Drive = Callable[..., Driver]


def test_cpu_that_counts_for_nothing_explains_nothing(drive: Drive) -> None:
    driver = drive(2, PolicyConfig(cpu_weight=0.0), tasks=[spec("spin", 1.0)])
    client = warm(driver, "spin", 1.0)
    slow = driver.fleet.workers[0]
    for _ in range(30):
        driver.report(0, cpu_s=0.125, delay_s=0.125, busy_s=0.25)
        driver.send(client, "spin", 2)
        for number in (0, 1):
            while driver.held[number]:
                driver.answer(number, service_s=2.0 if number == 0 else 1.0)
        driver.advance(0.2)
    assert slow.speed() < 0.8, "it is slow, whatever the reports say"
