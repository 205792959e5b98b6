"""Runs that once broke a promise, and must not again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lbcore.sim.run import Plan, execute

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "seeds.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["seed"]))
def test_every_promise_is_kept(case: dict[str, Any]) -> None:
    keep, limit = case.get("keep"), case.get("limit")
    plan = Plan(case["seed"], case["requests"], None if keep is None else tuple(keep), limit)
    outcome = execute(plan)
    assert not outcome.violation, f"{case['why']}\n{outcome.violation}"
    assert outcome.requests > 0
