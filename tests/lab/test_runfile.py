"""Runs as files: what is read, and one clear line for what is no run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lbcore.lab.runfile import RunFile, RunFileError, plain, read_run


def test_what_is_written_is_read_again() -> None:
    run = RunFile(
        kind="simulate",
        title="x",
        settings={"seed": 1},
        policies=[{"policy": "random", "mean": 1.0}],
        quantiles={"random": [(0.5, 1.0), (0.99, 2.0)]},
    )
    found = read_run(json.loads(json.dumps(plain(run))), "x.json")
    assert found.policies == run.policies
    assert [tuple(pair) for pair in found.quantiles["random"]] == run.quantiles["random"]
    assert (found.kind, found.title, found.settings) == ("simulate", "x", {"seed": 1})


def test_figures_that_are_no_numbers_become_null() -> None:
    run = RunFile(kind="send", title="x", policies=[{"p99": math.nan, "mean": [math.inf, 1.0]}])
    assert plain(run)["policies"] == [{"p99": None, "mean": [None, 1.0]}]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (7, "no run of lb"),
        ({"kind": "simulate", "title": "x"}, "no run of lb"),
        ({"lb_run": 1, "kind": "dream", "title": "x"}, "what kind of run"),
        ({"lb_run": 1, "kind": "send"}, "what kind of run"),
        ({"lb_run": 1, "kind": "send", "title": "x", "policies": 3}, "policies is int"),
    ],
)
def test_what_is_no_run_is_one_clear_line(found: Any, message: str) -> None:
    with pytest.raises(RunFileError, match=message) as raised:
        read_run(found, "x.json")
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("x.json: ")


def test_what_a_newer_version_adds_is_left_out() -> None:
    found = {"lb_run": 1, "kind": "send", "title": "x", "colour": "blue"}
    assert read_run(found, "x").title == "x"
