"""How the keys of flags and variables are taken apart; what they do is tested with the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.overrides import Override, apply_overrides, path_parts, variable_parts
from lbcore.core.problems import KeyPath, Origin


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name", ("name",)),
        ("broker.port", ("broker", "port")),
        ("workers[0].weight", ("workers", "0", "weight")),
        ("workers.worker-1.env.A_B", ("workers", "worker-1", "env", "A_B")),
        ("", None),
        (".", None),
        (".port", None),
        ("broker.", None),
        ("broker..port", None),
        ("[0]", None),
        ("workers[0", None),
        ("workers[x]", None),
        ("workers[0]weight", None),
    ],
)
def test_parts_of_a_flag(text: str, parts: tuple[str, ...] | None) -> None:
    assert path_parts(text) == parts


@given(st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,8}", fullmatch=True), min_size=1, max_size=5))
def test_parts_joined_with_dots_come_back(parts: list[str]) -> None:
    assert path_parts(".".join(parts)) == tuple(parts)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("LB_NAME", ("name",)),
        ("LB_BROKER__PORT", ("broker", "port")),
        ("LB_LIMITS__QUEUE_BYTES", ("limits", "queue_bytes")),
        ("LB_WORKERS__0__ENV__My__Name", ("workers", "0", "env", "My__Name")),
        ("LB_WORKERS__WORKER_1__WEIGHT", ("workers", "worker_1", "weight")),
        ("LB_", ("",)),
    ],
)
def test_parts_of_a_variable(name: str, parts: tuple[str, ...]) -> None:
    assert variable_parts(name) == parts


def test_an_override_changes_the_mapping_and_the_origin() -> None:
    document = {"broker": {"port": 1}}
    origins: dict[KeyPath, Origin] = {("broker", "port"): Origin("config.yaml", 2, "1")}
    override = Override("--set broker.port", ("broker", "port"), 5, {(): "5"})
    assert apply_overrides(document, origins, [override]) == []
    assert document == {"broker": {"port": 5}}
    assert origins == {("broker", "port"): Origin("--set broker.port", None, "5")}


def test_a_refused_override_changes_nothing() -> None:
    document = {"broker": {"port": 1}}
    override = Override("--set broker.prot", ("broker", "prot"), 5, {(): "5"})
    (problem,) = apply_overrides(document, {}, [override])
    assert str(problem) == "--set broker.prot: no such key; did you mean broker.port?"
    assert document == {"broker": {"port": 1}}
