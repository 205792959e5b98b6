"""Tasks for ``worker_rig``: they say that they run, and wait or compute."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from lbcore import TaskCancelled, cancelled, task

_PATIENCE_S = 30.0


def _wait_for(release: str) -> str:
    give_up_at = time.monotonic() + _PATIENCE_S
    while not os.path.exists(release):
        if time.monotonic() > give_up_at:
            raise TimeoutError(release)
        time.sleep(0.002)
    return "released"


@task
def hold(release: str) -> str:
    """Until the file is there."""
    return _wait_for(release)


@task(idempotent=False)
def once(trace: str, release: str = "/") -> int:
    """Leave a mark, then as hold; the number of marks."""
    with open(trace, "a") as file:
        file.write("x")
    _wait_for(release)
    return len(Path(trace).read_text())


@task(idempotent=False)
async def once_async(trace: str) -> int:
    """The same as a coroutine."""
    with open(trace, "a") as file:
        file.write("x")
    return len(Path(trace).read_text())


@task
def nap() -> str:
    """One call into the kernel."""
    time.sleep(_PATIENCE_S)
    return "slept"


@task
def compute() -> str:
    """Nothing but Python."""
    give_up_at = time.monotonic() + _PATIENCE_S
    number = 0
    while time.monotonic() < give_up_at:
        number += 1
    return "computed"


@task
async def nap_async() -> str:
    """Waits as a coroutine."""
    await asyncio.sleep(_PATIENCE_S)
    return "slept"


@task
async def compute_async() -> str:
    """A coroutine that blocks its loop."""
    await asyncio.sleep(0)
    return compute()


@task
def tidy(trace: str) -> str:
    """Cleans up when it is cancelled."""
    try:
        time.sleep(_PATIENCE_S)
    except TaskCancelled:
        Path(trace).write_text("clean")
        raise
    return "slept"


@task
def stubborn(release: str, trace: str) -> str:
    """Does not let go, but knows."""
    give_up_at = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up_at:
        try:
            if cancelled():
                Path(trace).write_text("knows")
            return _wait_for(release)
        except TaskCancelled:
            continue
    return "never released"


@task
def quick(number: int) -> int:
    """Some steps of Python."""
    return sum(range(number))
