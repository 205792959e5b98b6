"""Requests that are taken back, and clients that leave."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path

import pytest

from lbcore.core.errors import BrokerUnavailable, DeadlineExceeded
from tests.core.wire_spec import Frame
from tests.e2e.running import PATIENCE_S, REPOSITORY, together, wait_until
from tests.shell.scripted_broker import ScriptedBroker

REQUEST, GOODBYE, CANCEL = 3, 11, 12


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[ScriptedBroker]:
    made = ScriptedBroker(tmp_path)
    yield made
    made.close()


def kinds_and_ids(frames: list[Frame]) -> list[tuple[int, int]]:
    """What they are."""
    return [(frame.kind, frame.id) for frame in frames]


# ---- taken back ----------------------------------------------------------------------------------


def test_cancel_of_a_future_reaches_the_broker(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    frame = peer.frame()
    assert future.request_id == frame.id
    assert future.cancel()
    assert kinds_and_ids([peer.frame()]) == [(CANCEL, frame.id)]
    # at once, whatever the broker does
    assert future.cancelled()
    assert wait([future], PATIENCE_S).done == {future}
    with pytest.raises(CancelledError):
        future.result()
    assert future.cancel()
    # an answer that was under way is nobody's
    peer.echo(frame)
    other = client.submit("echo", 2)
    again = peer.frame()
    assert again.kind == REQUEST
    peer.echo(again)
    assert other.result(PATIENCE_S) == 2
    assert client._connection.session._withdrawn == {}


def test_cancel_of_a_finished_one_does_nothing(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    peer.echo(peer.frame())
    assert future.result(PATIENCE_S) == 1
    assert not future.cancel()
    client.close()
    assert [frame.kind for frame in peer.rest()] == [GOODBYE]


def test_many_are_cancelled_from_many_threads(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    futures = [client.submit("echo", number) for number in range(400)]

    def cancel(part: int) -> None:
        for future in futures[part::4]:
            future.cancel()

    def serve() -> None:
        for number in range(400):
            frame = peer.frame()
            if frame.kind == REQUEST and number % 3 == 0:
                peer.echo(frame)

    together(*[lambda part=part: cancel(part) for part in range(4)], serve)
    wait(futures, PATIENCE_S)
    assert all(future.done() for future in futures)
    assert client._connection.session.unanswered == 0


def test_cancel_without_a_connection_is_said_with_the_next(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    kept, gone = client.submit("echo", 1), client.submit("echo", 2)
    frames = peer.frames(2)
    peer.cut()
    wait_until(lambda: client._connection.down, "the loss")
    assert gone.cancel()
    again = broker.accept()
    assert kinds_and_ids(again.frames(2)) == [(REQUEST, frames[0].id), (CANCEL, frames[1].id)]
    again.echo(frames[0])
    assert kept.result(PATIENCE_S) == 1


def test_a_call_that_hears_nothing_is_taken_back(
    broker: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbcore.shell.client.DEADLINE_GRACE_S", 0.0)
    client, peer = broker.connect()
    with pytest.raises(DeadlineExceeded):
        client.call("echo", 1, timeout=0.02)
    first, second = peer.frames(2)
    assert kinds_and_ids([second]) == [(CANCEL, first.id)]


def test_a_stream_that_is_given_up_is_taken_back(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    replies = client.stream([("echo", [number]) for number in range(50)], window=10)

    def serve() -> list[Frame]:
        frames = peer.frames(10)
        peer.echo(frames[0])
        return frames

    _, frames = together(lambda: next(iter(replies)), serve)
    replies.close()  # type: ignore[attr-defined]
    assert kinds_and_ids(peer.frames(9)) == [(CANCEL, frame.id) for frame in frames[1:]]
    assert client._connection.session.books == [client._connection.session.open]


# ---- leaving -------------------------------------------------------------------------------------


def test_a_client_that_is_closed_says_goodbye(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    client.submit("echo", 1)
    peer.frame()
    client.close()
    assert [frame.kind for frame in peer.rest()] == [GOODBYE]


def test_a_client_that_is_closed_in_the_middle_of_a_frame(broker: ScriptedBroker) -> None:
    """Its goodbye would be taken for a part of that frame: it is said by another connection."""
    client, peer = broker.connect()
    client._connection._torn = True

    def serve() -> None:
        again = broker.accept()
        assert again.hello["resume"]["client"] == 7
        assert [frame.kind for frame in again.rest()] == [GOODBYE]

    together(client.close, serve)
    assert peer.rest() == []


def test_closing_from_another_thread_while_a_stream_runs(broker: ScriptedBroker) -> None:
    before = threading.active_count()
    client, peer = broker.connect()

    def stream() -> None:
        with pytest.raises(BrokerUnavailable, match="closed"):
            list(client.stream([("echo", [1])] * 1_000_000, window=20))

    def serve() -> None:
        for _ in range(100):
            peer.echo(peer.frame())
        threading.Thread(target=client.close, daemon=True).start()
        assert peer.rest()[-1].kind == GOODBYE

    together(stream, serve)
    wait_until(lambda: threading.active_count() <= before, "the end of all threads")


def test_closing_while_another_thread_is_held_up_at_sending(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    large = bytes(20 << 20)

    def send() -> None:
        with pytest.raises(BrokerUnavailable, match="closed"):
            client.call("echo", large)

    def close() -> None:
        # the first bytes of a frame that nobody reads on
        assert peer.socket.recv(1)
        client.close()

    together(send, close)


def test_the_end_of_the_process_says_goodbye(broker: ScriptedBroker) -> None:
    script = f"""
from lbcore import Client
from lbcore.shell.secrets import Credentials
client = Client("127.0.0.1", {broker.port},
    credentials=Credentials(role="client", secret={str(broker.credentials.secret)!r}))
client.submit("echo", 1)
print("submitted", flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
        text=True,
    )
    peer = broker.accept()
    assert peer.frame().kind == REQUEST
    _, error = process.communicate("\n", timeout=PATIENCE_S)
    assert [frame.kind for frame in peer.rest()] == [GOODBYE]
    assert (process.returncode, error) == (0, "")


def test_a_forked_process_leaves_the_client_alone(broker: ScriptedBroker) -> None:
    client, peer = broker.connect()
    future = client.submit("echo", 1)
    frame = peer.frame()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # whatever happens, no test goes on here
        try:
            client.call("noop")
        except BrokerUnavailable as error:
            os.write(writer, str(error).encode())
            with client:
                pass
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as told:
        assert "belongs to the process that was forked" in told.read()
    os.waitpid(child, 0)
    peer.echo(frame)
    assert future.result(PATIENCE_S) == 1
    client.close()
    assert [frame.kind for frame in peer.rest()] == [GOODBYE]
