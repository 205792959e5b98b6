"""The diff of two topologies: its lines, what is done, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.config import build_topology
from lbcore.core.plan import Plan, plan, with_workers
from lbcore.core.topology import Topology

BASE: dict[str, Any] = {
    "broker": {"port": 8000},
    "workers": [{"name": f"worker-{number}"} for number in range(1, 5)],
}


def built(mapping: Mapping[str, Any]) -> Topology:
    topology = build_topology(
        mapping, {}, source="/there/config.yaml", cores=8, file_exists=lambda _: True
    )
    assert isinstance(topology, Topology), topology
    return topology


def change(**sections: Any) -> Plan:
    """From ``BASE`` to ``BASE`` with other sections."""
    return plan(built(BASE), built({**BASE, **sections}))


def workers(**of: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Four workers, the second of which has more keys."""
    return [{**each, **of.get(each["name"].replace("-", "_"), {})} for each in BASE["workers"]]


def test_nothing_changed() -> None:
    assert change() == Plan()
    # the order of the list means nothing
    assert change(workers=BASE["workers"][::-1]) == Plan()


def test_the_lines_of_the_issue() -> None:
    new = workers(worker_2={"weight": 2}, worker_3={"env": {"A": "1"}})
    found = change(workers=[*new, {"name": "worker-5"}])
    assert found.lines == (
        "+ worker-5",
        "~ worker-2 weight 1 → 2",
        "~ worker-3 restart: env",
    )
    assert (found.added, found.removed, found.restarted) == (("worker-5",), (), ("worker-3",))
    assert found.starting == ("worker-5", "worker-3")
    assert not found.refusals


def test_from_one_to_five_adds_four_and_touches_nobody() -> None:
    found = plan(built({"workers": 1}), built({"workers": 5}))
    assert found == Plan(
        lines=tuple(f"+ worker-{number}" for number in range(2, 6)),
        added=tuple(f"worker-{number}" for number in range(2, 6)),
    )


def test_a_worker_that_is_gone() -> None:
    found = change(workers=BASE["workers"][:3])
    assert found == Plan(lines=("- worker-4",), removed=("worker-4",))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"weight": 1.5}, "~ worker-2 weight 1 → 1.5"),
        ({"tags": ["gpu"]}, "~ worker-2 tags [] → [gpu]"),
        ({"concurrency": 4}, "~ worker-2 restart: concurrency 1 → 4"),
        ({"nice": 5}, "~ worker-2 restart: nice 0 → 5"),
        ({"cpus": [0, 1]}, "~ worker-2 restart: cpus [] → [0, 1]"),
        ({"env": {"SECRET": "xyz"}}, "~ worker-2 restart: env"),
        ({"port": 9001}, "~ worker-2 restart: address 127.0.0.1:0 → 127.0.0.1:9001"),
        ({"nice": 1, "env": {"A": "b"}}, "~ worker-2 restart: nice 0 → 1, env"),
    ],
)
def test_what_changes_in_a_worker(keys: dict[str, Any], line: str) -> None:
    found = change(workers=workers(worker_2=keys))
    assert found.lines == (line,)
    assert found.restarted == (("worker-2",) if "restart" in line else ())


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"policy": "random"}, "~ policy least_load → random"),
        ({"policy": "a.b:Mine"}, "~ policy least_load → a.b:Mine"),
        ({"policy": {"cpu_weight": 0}}, "~ policy.cpu_weight 1 → 0"),
        ({"limits": {"queue": 10}}, "~ limits.queue 1000000 → 10"),
        ({"logs": {"level": "DEBUG"}}, "~ logs.level INFO → DEBUG"),
    ],
)
def test_what_changes_beside_the_workers(sections: dict[str, Any], line: str) -> None:
    assert change(**sections) == Plan(lines=(line,))


def test_other_tasks_restart_every_worker() -> None:
    found = change(tasks=["mine.py"])
    names = tuple(worker["name"] for worker in BASE["workers"])
    assert found.lines == (*(f"~ {name} restart: tasks" for name in names), "+ tasks mine.py")
    assert found.restarted == names


@pytest.mark.parametrize(
    ("sections", "beginning"),
    [
        ({"name": "other"}, "name cannot change while the system runs (lb → other)"),
        ({"broker": {"port": 8001}}, "broker cannot change while the system runs (127.0.0.1:8000"),
        ({"logs": {"folder": "x"}}, "logs.folder cannot change while the system runs (logs → x)"),
    ],
)
def test_what_cannot_change_is_refused(sections: dict[str, Any], beginning: str) -> None:
    found = change(**sections)
    (line,) = found.refusals
    assert line.startswith(beginning)
    assert line.endswith(": `down`, then `up`")


def test_a_field_that_nobody_thought_of_is_refused_and_not_ignored() -> None:
    known = {"name", "broker", "workers", "policy", "tasks", "logs", "limits", "source"}
    for name in {each.name for each in fields(Topology)} - known:
        other = replace(built(BASE), **{name: object()})  # type: ignore[arg-type]
        assert plan(built(BASE), other).refusals


def test_a_renamed_worker_inherits_the_address() -> None:
    fixed = [{"name": "a", "port": 9001}, {"name": "b", "port": 9002}]
    renamed = [{"name": "a", "port": 9001}, {"name": "c", "port": 9002}]
    found = plan(built({"workers": fixed}), built({"workers": renamed}))
    assert (found.added, found.removed, found.heirs) == (("c",), ("b",), {"c": "b"})
    assert not found.refusals


@pytest.mark.parametrize(
    "after",
    [
        [{"name": "a", "port": 9002}, {"name": "b", "port": 9001}],
        [{"name": "a", "port": 9002}],
        [{"name": "a"}, {"name": "b"}, {"name": "c", "port": 9001}],
    ],
)
def test_an_address_that_somebody_still_has_is_refused(after: list[dict[str, Any]]) -> None:
    fixed = [{"name": "a", "port": 9001}, {"name": "b", "port": 9002}]
    found = plan(built({"workers": fixed}), built({"workers": after}))
    assert found.refusals
    assert "before" in found.refusals[0]
    assert len(found.refusals[0]) < 110


@given(st.integers(1, 12), st.integers(1, 12))
def test_scaling_keeps_the_first_and_names_new_ones(before: int, after: int) -> None:
    topology = with_workers(built({"workers": before}), after)
    names = [worker.name for worker in topology.workers]
    assert names == [f"worker-{number}" for number in range(1, after + 1)]
