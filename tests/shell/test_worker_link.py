"""One broker connection of a worker, as the threads of a pool see it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from lbcore.shell.worker_link import Link


@pytest.fixture
def ends() -> Iterator[tuple[Link, socket.socket]]:
    """A link, and the broker's end of its connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Link(ours, 0, None, 1 << 20, lambda *_: False, lambda _: None, print), theirs


def test_any_number_of_threads_may_ask_whether_the_broker_is_gone(
    ends: tuple[Link, socket.socket],
) -> None:
    link, theirs = ends
    wrong: list[object] = []

    def ask() -> None:
        try:
            wrong.extend("it has not" for _ in range(2000) if link.has_ended)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    theirs.close()
    assert link.has_ended


def test_the_end_is_seen_behind_data_that_nobody_has_read(
    ends: tuple[Link, socket.socket],
) -> None:
    link, theirs = ends
    theirs.sendall(b"x" * 1000)
    assert not link.has_ended
    theirs.close()
    assert link.has_ended
