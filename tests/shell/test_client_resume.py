"""The client comes back after its connection broke, and each answer is taken once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.core.wire_spec import Frame, make_frame, pack, unpack
from tests.e2e.running import PATIENCE_S, together, wait_until
from tests.shell.scripted_broker import RESENT, Peer, ScriptedBroker, reply

MEGABYTE = 1 << 20
KIND = {"REQUEST": 3, "CONTROL": 5, "GOODBYE": 11, "CANCEL": 12}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ScriptedBroker]:
    made = ScriptedBroker(tmp_path)
    yield made
    made.close()


def age_ms(frame: Frame) -> int:
    """How old a RESENT request says it is."""
    return frame.worker >> 8 | frame.cpu << 8


def echoing(peer: Peer, count: int) -> None:
    """Answer so many requests of echo."""
    for _ in range(count):
        peer.echo(peer.frame())


# ---- one way after the other ---------------------------------------------------------------------


def test_a_call_does_not_notice(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()

    def serve() -> None:
        first = peer.frame()
        peer.cut()
        again = broker.accept()
        assert again.hello["resume"] == {"client": 7, "ticket": b"ticket of 7"}
        frame = again.frame()
        assert (frame.id, frame.body, frame.flags) == (first.id, first.body, RESENT)
        assert frame.id >> 32 == 7
        assert age_ms(frame) > 0
        again.answer(frame, "value")

    value, _ = together(lambda: client.call("echo", "value"), serve)
    assert value == "value"


def test_every_way_at_once(broker: ScriptedBroker) -> None:
    """Cut again and again; every request is answered, each once, whatever is sent twice."""
    client, first = broker.connect()

    def serve(peer: Peer, last: bool) -> None:
        taken: list[Frame] = []
        if not last:
            # until all wait for the answers that it does not give
            peer.socket.settimeout(0.3)
        while last or len(taken) < 700:
            try:
                frame = peer.frame()
            except (AssertionError, OSError):
                break
            taken.append(frame)
            if frame.kind == KIND["CONTROL"]:
                answer = pack({"ok": {"state": "RUNNING"}})
                peer.send(make_frame("CONTROL_REPLY", answer, id=frame.id))
            elif frame.kind == KIND["REQUEST"] and (last or len(taken) % 3):
                peer.echo(frame)
                if len(taken) % 5 == 0:
                    peer.echo(frame)
        peer.cut()

    def serving() -> None:
        # all may be answered before the last cut, and then nobody comes any more
        with contextlib.suppress(OSError):
            serve(first, last=False)
            for _ in range(4):
                serve(broker.accept(), last=False)
            serve(broker.accept(), last=True)

    threading.Thread(target=serving, daemon=True).start()

    def calling() -> None:
        for number in range(200):
            assert client.call("echo", number) == number

    def submitting() -> None:
        futures = [client.submit("echo", number) for number in range(1000)]
        assert [future.result(PATIENCE_S) for future in futures] == list(range(1000))

    def mapping() -> None:
        assert list(client.map("echo", range(1000), window=50)) == list(range(1000))

    def streaming() -> None:
        calls = [("echo", [number]) for number in range(1500)]
        replies = list(client.stream(calls, window=100))
        assert sorted(reply.index for reply in replies) == list(range(1500))
        assert all(reply.value() == reply.index for reply in replies)

    def asking() -> None:
        for _ in range(50):
            assert client.status() == {"state": "RUNNING"}

    together(calling, calling, submitting, mapping, streaming, asking)
    client.close()


def test_a_stream_goes_on_where_it_was(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()

    def serve() -> None:
        frames = peer.frames(10)
        for frame in frames[:4]:
            peer.echo(frame)
        wait_until(lambda: len(values) == 4, "the first answers")
        peer.cut()
        again = broker.accept()
        resent = again.frames(6)
        assert [frame.id for frame in resent] == [frame.id for frame in frames[4:]]
        assert all(frame.flags == RESENT for frame in resent)
        # one that was answered before the cut is nobody's
        again.echo(frames[0])
        for frame in resent:
            again.echo(frame)
        echoing(again, 20)

    values: list[int] = []

    def stream() -> None:
        calls = [("echo", [number]) for number in range(30)]
        values.extend(reply.value() for reply in client.stream(calls, window=10))

    together(stream, serve)
    assert sorted(values) == list(range(30))


def test_answers_may_come_with_the_welcome(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    futures = [client.submit("echo", number) for number in range(3)]
    frames = peer.frames(3)
    peer.cut()
    again = broker.accept(more=b"".join(reply(frame.id, "kept") for frame in frames[:2]))
    again.frames(3)
    again.answer(frames[2], "new")
    assert [future.result(PATIENCE_S) for future in futures] == ["kept", "kept", "new"]


def test_a_question_is_asked_again(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()

    def serve() -> None:
        first = peer.frame()
        peer.cut()
        again = broker.accept()
        assert again.frame() == first
        again.send(make_frame("CONTROL_REPLY", pack({"ok": [1]}), id=first.id))

    assert together(client.tasks, serve)[0] == [1]


def test_a_client_at_rest_comes_back_when_it_is_used(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    peer.cut()

    def serve() -> None:
        again = broker.accept()
        again.echo(again.frame())

    assert together(lambda: client.call("echo", 1), serve)[0] == 1


def test_requests_made_without_a_connection_leave_with_the_next(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    first = client.submit("echo", 0)
    peer.frame()
    peer.cut()
    wait_until(lambda: client._connection.down, "the loss")
    more = [client.submit("echo", number) for number in range(1, 50)]
    again = broker.accept()
    frames = again.frames(50)
    assert sorted(unpack(frame.body)[0][0] for frame in frames) == list(range(50))
    for frame in frames:
        again.echo(frame)
    assert [future.result(PATIENCE_S) for future in [first, *more]] == list(range(50))


def test_numbers_of_tasks_may_be_others(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", "x")
    assert peer.frame().task == 1
    peer.cut()
    again = broker.accept(tasks={"noop": 4})
    # nobody has it yet; it waits for the worker that does
    call = threading.Thread(target=lambda: client.call("noop"), daemon=True)
    call.start()
    frame = again.frame()
    assert frame.task == 4
    again.answer(frame)
    again.send(make_frame("TASKS", pack({"noop": 4, "echo": 9})))
    frame = again.frame()
    assert (frame.task, frame.flags) == (9, RESENT)
    again.echo(frame)
    assert future.result(PATIENCE_S) == "x"
    call.join(PATIENCE_S)


def test_a_cut_while_the_client_is_held_up_at_sending(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    large = bytes(MEGABYTE)

    def stream() -> None:
        replies = list(client.stream([("echo", [large])] * 40, window=40))
        assert [len(reply.value()) for reply in replies] == [MEGABYTE] * 40

    def serve() -> None:
        peer.frame()
        peer.cut()
        again = broker.accept()
        for _ in range(40):
            frame = again.frame()
            assert frame.flags == RESENT
            again.echo(frame)

    together(stream, serve)


def test_answers_are_taken_while_requests_are_sent_again(broker: ScriptedBroker) -> None:
    """A broker reads no more from a client that does not take its answers."""
    client, peer = broker.connect()

    def submit() -> None:
        futures = [client.submit("echo", bytes(MEGABYTE)) for _ in range(30)]
        assert [len(future.result(PATIENCE_S)) for future in futures] == [MEGABYTE] * 30

    def serve() -> None:
        peer.frame()
        peer.cut()
        echoing(broker.accept(), 30)

    together(submit, serve)


def test_a_callback_that_calls_while_the_connection_breaks(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    nested: Future[Any] = Future()

    def call(future: Future[Any]) -> None:
        try:
            nested.set_result([future.result(), client.call("echo", "nested")])
        except BaseException as error:
            nested.set_exception(error)

    client.submit("echo", "outer").add_done_callback(call)
    other = client.submit("echo", "other")
    frames = peer.frames(2)
    peer.echo(frames[0])
    peer.frame()
    peer.cut()
    again = broker.accept()
    echoing(again, 2)
    assert nested.result(PATIENCE_S) == ["outer", "nested"]
    assert other.result(PATIENCE_S) == "other"


def test_a_write_that_was_torn_apart_is_not_gone_on_with(broker: ScriptedBroker) -> None:
    """An interrupt may end a write in the middle of a frame."""
    client, _ = broker.connect()
    client._connection._torn = True

    def serve() -> None:
        again = broker.accept()
        echoing(again, 1)

    assert together(lambda: client.call("echo", 1), serve)[0] == 1
