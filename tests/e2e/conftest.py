"""Fixtures of the tests of the whole system."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.e2e.running import RunningSystem, connect


@pytest.fixture(scope="session", autouse=True)
def silent(shared: RunningSystem) -> Iterator[socket.socket]:
    """A client that connects before all others and says nothing: its patience is tested last."""
    with connect(shared.state().broker.address) as peer:
        yield peer
