"""The client's books through brokers that come and go: each request is answered exactly once."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lbcore.core.frames import REQUEST_HEADER, reply_frame, request_frame
from lbcore.core.session import Session, cancel_frame
from tests.core.test_session import CANCEL, RESENT, welcome

NAMES = ("a", "b", "c")


class Life(RuleBasedStateMachine):
    """One client through brokers that come and go, and renumber their tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session = Session()
        self.session.welcome(welcome(tasks={"a": 0, "b": 1, "c": 2}), 0.0)
        self.stream: dict[int, Any] = {}
        self.session.books.append(self.stream)
        #: id -> (name, when, deadline_ms), of all that are open
        self.model: dict[int, tuple[str, float, int]] = {}
        #: what the broker that is there now has of us
        self.at_broker: set[int] = set()
        self.answered: set[int] = set()

    @rule(
        name=st.sampled_from(NAMES),
        deadline_ms=st.sampled_from([0, 0, 50, 5000]),
        flow=st.booleans(),
    )
    def send(self, name: str, deadline_ms: int, flow: bool) -> None:
        number = self.session.tasks.get(name)
        if number is None:
            return
        request_id = self.session.next_id()
        frame = request_frame(request_id, number, name.encode(), deadline_ms=deadline_ms)
        if flow:
            self.stream[request_id] = (frame, self.now, 0)
        else:
            self.session.opened(request_id, frame, self.now)
        self.model[request_id] = (name, self.now, deadline_ms)
        self.at_broker.add(request_id)

    @rule(seconds=st.floats(0.001, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        if self.at_broker:
            request_id = data.draw(st.sampled_from(sorted(self.at_broker)))
            self.take(reply_frame(request_id, 0))

    @rule(data=st.data())
    def answer_twice(self, data: st.DataObject) -> None:
        if self.answered:
            request_id = data.draw(st.sampled_from(sorted(self.answered)))
            assert self.session.answered(request_id) is None

    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        if self.model:
            request_id = data.draw(st.sampled_from(sorted(self.model)))
            assert self.session.withdraw(request_id) == cancel_frame(request_id)
            del self.model[request_id]
            self.answered.add(request_id)
            self.at_broker.discard(request_id)

    @rule(order=st.permutations(NAMES), count=st.integers(0, 3))
    def connect_again(self, order: list[str], count: int) -> None:
        tasks = {name: number for number, name in enumerate(order[:count])}
        self.at_broker.clear()
        message = welcome(self.session.number, resumed=True, tasks=tasks)
        self.resume(self.session.welcome(message, self.now))
        for name, _, _ in (self.model[each] for each in self.at_broker):
            assert name in tasks

    @precondition(lambda self: len(self.session.tasks) < len(NAMES))
    @rule(data=st.data())
    def worker_joins(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([n for n in NAMES if n not in self.session.tasks]))
        tasks = {**self.session.tasks, name: len(self.session.tasks)}
        self.resume(self.session.tasks_changed(tasks, self.now))

    @rule()
    def look_at_the_clock(self) -> None:
        for answer in self.session.overdue(self.now, connected=True):
            assert int.from_bytes(answer[8:16], "little") not in self.at_broker
            self.take(answer)

    @rule(number=st.integers(8, 20))
    def start_anew(self, number: int) -> None:
        self.at_broker.clear()
        frames, answers = self.session.welcome(
            welcome(number, tasks={"a": 0, "b": 1, "c": 2}), self.now
        )
        assert not frames
        assert len(answers) == len(self.model)
        for answer in answers:
            self.take(answer)

    def resume(self, found: Any) -> None:
        for frame in found.frames:
            size, kind, flags, task, request_id, deadline_ms, tail = REQUEST_HEADER.unpack_from(
                frame
            )
            if kind == CANCEL:
                assert request_id in self.answered
                continue
            name, at, first_ms = self.model[request_id]
            assert flags == RESENT
            assert self.session.tasks[name] == task
            assert frame[24:] == name.encode()
            assert size == 1
            assert (tail >> 8) >= (self.now - at) * 1000
            assert bool(deadline_ms) == bool(first_ms)
            assert deadline_ms <= first_ms
            assert request_id not in self.at_broker
            self.at_broker.add(request_id)
        for answer in found.answers:
            request_id = int.from_bytes(answer[8:16], "little")
            _, at, first_ms = self.model[request_id]
            assert (self.now - at) * 1000 >= first_ms > 0
            self.take(answer)

    def take(self, answer: bytes) -> None:
        request_id = int.from_bytes(answer[8:16], "little")
        assert request_id in self.model
        assert self.session.answered(request_id) is not None
        del self.model[request_id]
        self.at_broker.discard(request_id)
        self.answered.add(request_id)

    @invariant()
    def books_are_right(self) -> None:
        assert {*self.session.open, *self.stream} == set(self.model)
        assert self.session.unanswered == len(self.model)
        # whatever is open is at the broker, or waits here for its task
        assert set(self.model) - self.at_broker <= set(self.session._held)


TestLife = Life.TestCase
