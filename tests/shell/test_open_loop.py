"""Requests leave when they are due, whoever is late."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from lbcore.core.errors import BrokerUnavailable, TaskError
from lbcore.shell.open_loop import Call, OpenLoop


class Server:
    """Answers each request after a while, as its arguments say."""

    def __init__(self) -> None:
        self.sent: list[float] = []

    def submit(self, task: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.sent.append(time.monotonic())
        future: Future[Any] = Future()
        outcome = kwargs.get("fails", 0) >= len(self.sent)

        def answer() -> None:
            if task == "lost":
                future.set_exception(BrokerUnavailable("gone"))
            elif outcome:
                future.set_exception(TaskError("no"))
            else:
                future.set_result(kwargs.get("value"))

        if task != "never":
            threading.Timer(kwargs.get("after_s", 0.0), answer).start()
        return future


def run(calls: list[Call], patience_s: float = 10.0, **more: Any) -> tuple[OpenLoop, Server]:
    server = Server()
    loop = OpenLoop(server, calls, **more)
    loop.run(time.monotonic(), patience_s)
    return loop, server


def test_a_slow_answer_delays_no_request() -> None:
    calls = [Call(0.0, "any", {"after_s": 0.3, "value": 7}), Call(0.05, "any", {})]
    loop, server = run(calls)
    assert server.sent[1] - server.sent[0] < 0.25
    assert loop.answers[0].response_s >= 0.3
    assert loop.answers[0].value == 7
    assert loop.answers[1].response_s < 0.25


def test_what_is_sent_late_has_waited_since_it_was_due() -> None:
    events = [(0.0, lambda: time.sleep(0.2))]
    loop, _ = run([Call(0.01, "any", {})], events=events)
    assert loop.answers[0].response_s >= 0.19


def test_one_that_fails_is_sent_again_and_then_given_up() -> None:
    loop, server = run([Call(0.0, "any", {"fails": 2})], retries=3, retry_s=0.05)
    assert len(server.sent) == 3
    assert loop.answers[0].failures == 2
    assert loop.answers[0].response_s >= 0.1
    loop, server = run([Call(0.0, "any", {"fails": 9})], retries=1)
    assert len(server.sent) == 2
    assert loop.answers[0].is_answered
    assert math.isnan(loop.answers[0].response_s)


def test_one_that_is_never_answered_is_waited_for_no_longer_than_that() -> None:
    began = time.monotonic()
    loop, _ = run([Call(0.0, "never", {}), Call(0.0, "any", {})], patience_s=0.2)
    assert time.monotonic() - began < 5.0
    assert [answer.is_answered for answer in loop.answers] == [False, True]


def test_a_broker_that_is_lost_ends_it() -> None:
    with pytest.raises(BrokerUnavailable):
        run([Call(0.0, "lost", {}), Call(5.0, "any", {})])
