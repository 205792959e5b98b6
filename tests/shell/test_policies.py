"""Policies of the user's own: what can be loaded, what is said of what cannot, and the guard."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lbcore.core.policies import POLICIES
from lbcore.core.policies.round_robin import RoundRobin
from lbcore.core.topology import Address, PolicyConfig, Topology, WorkerConfig
from lbcore.shell import task_check
from lbcore.shell.policies import Guarded, PolicyError, load_policies, substitutes
from tests.core.driver import Driver, spec

FIRST = """
from lbcore import Policy


class First(Policy):
    def choose(self, task, now, startable=False):
        able = self.able(task)
        return able[0] if able else None
"""


@pytest.fixture(autouse=True)
def in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(folder: Path, text: str, name: str = "own.py:First") -> Topology:
    (folder / "own.py").write_text(text)
    file, _, owner = name.rpartition(":")
    if file.endswith(".py"):
        name = f"{folder / file}:{owner}"
    return Topology(
        name="lb",
        broker=Address(),
        workers=(WorkerConfig(name="worker-1"), WorkerConfig(name="worker-2")),
        policy=PolicyConfig(name=name),
        source=str(folder / "config.yaml"),
    )


def test_a_class_in_a_file_is_a_policy(tmp_path: Path) -> None:
    topology = make(tmp_path, FIRST)
    driver = Driver(2, topology.policy, policies=load_policies(topology))
    client = driver.client()
    driver.send(client, "short", 3)
    assert driver.pending() == [3, 0]
    assert driver.ask(client, {"op": "status"})["broker"]["policy"] == "own.py:First"
    (decision, *_) = driver.ask(client, {"op": "explain", "last": 1})
    assert decision["policy"] == "own.py:First"
    assert decision["reason"] == "worker-1 was the choice of First"
    driver.finish()
    driver.assert_empty()


def test_a_class_in_a_module_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", ["/nowhere"])
    topology = make(tmp_path, FIRST)
    (tmp_path / "policies_of_mine.py").write_text(FIRST)
    topology = make(tmp_path, FIRST, "policies_of_mine:First")
    assert topology.policy.label == "policies_of_mine:First"
    assert topology.policy.name in load_policies(topology)


def test_those_built_in_load_nothing(tmp_path: Path) -> None:
    assert load_policies(make(tmp_path, "broken(", "random")) == POLICIES


def test_a_policy_may_be_changed_for_ones_own(tmp_path: Path) -> None:
    topology = make(tmp_path, FIRST.replace("    def", "    late_binding = True\n\n    def"))
    driver = Driver(2, policies=load_policies(topology))
    driver.send(driver.client(), "short", 5)
    policy = PolicyConfig(name=topology.policy.name)
    changed = Driver(2, policy, policies=load_policies(topology)).ledger.topology
    driver.perform(driver.broker.topology_changed(changed, driver.now))
    assert driver.ledger.policy.late_binding
    driver.finish()


MISTAKES = [
    ("import nothing_of_that_name", "own.py:1: ModuleNotFoundError: No module named 'nothing_"),
    ("x = (", "own.py:1: SyntaxError: '(' was never closed"),
    ("raise SystemExit(3)", "own.py:1: the module ends the process"),
    ("class Second: pass", "own.py:First: there is no class 'First', nor any other policy"),
    (
        FIRST.replace("First", "Second"),
        "own.py:First: there is no class 'First'; there are: Second",
    ),
    (
        "class First: pass",
        "own.py:First: is no policy; write `class First(lbcore.Policy):`",
    ),
    ("First = 3", "own.py:First: is no policy"),
    (
        "import lbcore\nclass First(lbcore.Policy): pass",
        "own.py:First: has no method `choose`",
    ),
    (
        FIRST + "\n    def __init__(self, fleet, rng):\n        fleet.no_such_thing\n",
        "own.py:First: making it raises AttributeError: 'Fleet' object has no attribute",
    ),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_what_cannot_be_used_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    topology = make(tmp_path, text)
    with pytest.raises(PolicyError) as caught:
        load_policies(topology)
    assert str(caught.value).startswith(f"policy: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *MISTAKES[::4],
        ("import os; os._exit(7)", "the import ends its process with exit code 7"),
        (FIRST + "\n    def __init__(self, *_):\n        raise KeyboardInterrupt\n", "the import"),
    ],
)
def test_it_is_checked_in_a_process_of_its_own(tmp_path: Path, text: str, message: str) -> None:
    found = task_check.check_policy(make(tmp_path, text))
    assert found is not None
    assert found.startswith(message)
    assert task_check.check_policy(make(tmp_path, FIRST)) is None


def test_those_built_in_are_not_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert task_check.check_policy(make(tmp_path, "", "random")) is None


def test_a_broker_that_cannot_load_it_any_more_has_another(tmp_path: Path) -> None:
    topology = make(tmp_path, "x = (")
    driver = Driver(2, topology.policy, policies=substitutes(topology))
    driver.send(driver.client(), "short", 4)
    assert driver.ledger.queue.count == 2
    driver.finish()


# ---- the guard ---------------------------------------------------------------------------------


class Wrong(RoundRobin):
    """A policy that fails in one of its methods after a while, or in what it says."""

    follows = True
    where = ""
    answer: Any = None

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(f"broken\nin {where}")

    def choose(self, task, now, startable=False):  # type: ignore[no-untyped-def]
        self._fail("choose")
        if self.where == "answer":
            return self.answer
        return super().choose(task, now, startable)

    def changed(self, worker, now, keep_place=False):  # type: ignore[no-untyped-def]
        self._fail("changed")
        super().changed(worker, now, keep_place)

    def sent(self, worker, task, ids, now):  # type: ignore[no-untyped-def]
        self._fail("sent")

    def answered(self, worker, outcome, now):  # type: ignore[no-untyped-def]
        self._fail("answered")

    def reason(self, task, winner, now):  # type: ignore[no-untyped-def]
        self._fail("reason")
        return f"because\nof {winner.name}"


class Case:
    """A system whose policy goes wrong when it is told to."""

    def __init__(self, late_binding: bool = False) -> None:
        self.told: list[tuple[str, str]] = []

        class Own(Wrong):
            pass

        Own.late_binding = late_binding
        self.kind: type[Wrong] = Own
        config = PolicyConfig(name="own.py:Own")

        def make(fleet: Any, rng: Any) -> Guarded:
            return Guarded(
                self.kind, fleet, rng, "own.py:Own", lambda *told: self.told.append(told)
            )

        self.driver = Driver(3, config, policies={**POLICIES, config.name: make})
        self.client = self.driver.client()


@pytest.mark.parametrize("late_binding", [False, True])
@pytest.mark.parametrize("where", ["choose", "changed", "sent", "answered"])
def test_one_that_raises_is_replaced_and_nothing_fails(where: str, late_binding: bool) -> None:
    case = Case(late_binding)
    driver = case.driver
    driver.send(case.client, "short", 7)
    case.kind.where = where
    driver.send(case.client, "short", 7)
    driver.answer(0)
    driver.send(case.client, "short", 7)
    driver.finish()
    assert driver.statuses(case.client) == [0] * 21
    driver.assert_empty()
    ((line, detail),) = case.told
    substitute = "least_load" if late_binding else "least_pending"
    assert line == (
        f"policy own.py:Own: {where} raised RuntimeError: broken; {substitute} takes its place"
    )
    assert "RuntimeError: broken" in detail
    last = driver.ask(case.client, {"op": "explain", "last": 1})[0]
    assert f"(own.py:Own failed, {substitute} took its place)" in last["reason"]


@pytest.mark.parametrize("what", ["a text", 3, "lost", "strange"])
def test_one_that_names_nonsense_is_replaced(what: object) -> None:
    case = Case()
    driver = case.driver
    driver.lose(2)
    case.kind.where = "answer"
    case.kind.answer = {
        "lost": driver.fleet.workers[2],
        "strange": Driver(1).fleet.workers[0],
    }.get(str(what), what)
    driver.send(case.client, "short", 4)
    assert driver.pending() == [2, 2, 0]
    assert "is not a ready worker that has the task" in case.told[0][0]
    driver.finish()


def test_one_that_names_a_worker_without_the_task_is_replaced() -> None:
    case = Case()
    driver = case.driver
    driver.lose(2)
    driver.join(2, [spec("other")])
    case.kind.where, case.kind.answer = "answer", driver.fleet.workers[2]
    driver.send(case.client, "short", 4)
    assert driver.pending() == [2, 2, 0]
    assert "worker-3 is not a ready worker that has the task" in case.told[0][0]
    driver.finish()


def test_one_that_finds_nobody_makes_requests_wait() -> None:
    case = Case()
    case.kind.where = "answer"
    case.driver.send(case.client, "short", 2)
    assert case.driver.ledger.queue.count == 2
    assert not case.told
    case.kind.where = ""
    case.driver.join(0)
    case.driver.finish()
    assert case.driver.statuses(case.client) == [0, 0]


def test_a_reason_is_one_line_whatever_happens() -> None:
    case = Case()
    policy, winner = case.driver.ledger.policy, case.driver.fleet.workers[0]
    assert policy.reason(0, winner, 0.0) == "because of worker-1"
    case.kind.where = "reason"
    assert policy.reason(0, winner, 0.0) == "worker-1 was chosen; `reason` raised RuntimeError"
    assert not case.told


def test_one_that_cannot_be_made_any_more_is_replaced() -> None:
    told: list[tuple[str, ...]] = []

    def fail(*_: object) -> Any:
        raise ValueError("no")

    driver = Driver(2)
    guarded = Guarded(fail, driver.fleet, random.Random(0), "x:Y", lambda *each: told.append(each))
    assert not guarded.late_binding
    assert guarded.choose(0, driver.now) in driver.fleet.ready
    assert "making it raised ValueError: no" in told[0][0]
