"""Many requests in one stream: what is sent, and when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lbcore import Client
from lbcore.core.errors import BadArguments
from tests.e2e.running import RunningSystem


@pytest.fixture
def client(shared: RunningSystem) -> Iterator[Client]:
    with shared.client() as made:
        yield made


def test_a_call_that_cannot_be_sent_raises_after_the_answers_before_it(client: Client) -> None:
    calls: list[tuple[str, dict[str, object]]] = [
        ("echo", {"value": 1}),
        ("echo", {"value": 2}),
        ("echo", {"value": object()}),
    ]
    replies = client.stream(calls)
    assert sorted(next(replies).value() for _ in range(2)) == [1, 2]
    with pytest.raises(BadArguments, match="cannot be sent"):
        next(replies)


def test_arguments_are_taken_as_they_are_when_their_turn_comes(client: Client) -> None:
    def calls() -> Iterator[tuple[str, dict[str, int]]]:
        arguments = {"value": 0}
        for value in range(50):
            arguments["value"] = value
            yield "echo", arguments

    values = {reply.index: reply.value() for reply in client.stream(calls())}
    assert values == {value: value for value in range(50)}
