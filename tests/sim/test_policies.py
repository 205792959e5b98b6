"""The promises hold whichever policy chooses: a few runs with each that the seeds do not draw."""

from __future__ import annotations

import pytest

from lbcore.core.policies import POLICIES
from lbcore.sim import faults, run


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - set(faults.POLICIES)))
def test_no_promise_is_broken(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "POLICIES", (policy,))
    monkeypatch.setattr(faults, "POLICIES", (policy, "least_load", "least_pending"))
    for seed in range(3):
        outcome = run.execute(run.Plan(seed, 800))
        assert not outcome.violation, f"seed {seed}: {outcome.violation}"
