"""The driver of a broker core, as a fixture that checks the books once more at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.core.driver import Driver


@pytest.fixture
def drive() -> Iterator[Callable[..., Driver]]:
    """Makes drivers: ``drive(workers=3, policy="random", ...)``, see ``Driver``."""
    drivers: list[Driver] = []

    def make(*args: Any, **more: Any) -> Driver:
        driver = Driver(*args, **more)
        drivers.append(driver)
        return driver

    yield make
    for driver in drivers:
        driver.check()
