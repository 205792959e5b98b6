"""Lines about refusals, and answers to wrong proofs, are few however many there are."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.refusals import (
    LINES_PER_S,
    PEERS_MAX,
    PROOF_WAIT_MAX_S,
    PROOFS_PER_S,
    Allowance,
    ProofThrottle,
    RefusalLog,
)


@given(per_s=st.integers(1, 20), gaps=st.lists(st.floats(0.0, 2.0, allow_nan=False), max_size=200))
def test_never_more_than_so_many_in_any_time(per_s: int, gaps: list[float]) -> None:
    allowance, now = Allowance(per_s), 100.0
    taken: list[float] = []
    for gap in gaps:
        now += gap
        if allowance.take(now):
            taken.append(now)
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            assert last - first + 1 <= per_s + (taken[last] - taken[first]) * per_s + 1e-6


def test_a_flood_is_told_of_in_a_few_lines_and_a_number() -> None:
    lines: list[str] = []
    log = RefusalLog(lines.append)
    for number in range(1000):
        log.note(f"number {number}", 50.0 + number / 1000)
    assert lines[:LINES_PER_S] == [f"number {n}" for n in range(LINES_PER_S)]
    assert len(lines) <= 4 * LINES_PER_S
    log.flush()
    told = sum("number" in line for line in lines)
    more = sum(int(line.split()[0]) for line in lines if "more connections" in line)
    assert told + more == 1000
    before = list(lines)
    log.flush()
    assert lines == before


def test_each_guess_waits_longer_than_the_one_before() -> None:
    throttle = ProofThrottle()
    waits = [throttle.wait_s("mallory", 9.0) for _ in range(PROOFS_PER_S + 5)]
    assert waits[:PROOFS_PER_S] == [0.0] * PROOFS_PER_S
    assert waits[PROOFS_PER_S:] == sorted(waits[PROOFS_PER_S:])
    assert waits[-1] == 5 / PROOFS_PER_S
    assert throttle.wait_s("alice", 9.0) == 0.0
    assert throttle.wait_s("mallory", 9.0 + 60.0) == 0.0
    assert max(throttle.wait_s("mallory", 70.0) for _ in range(1000)) == PROOF_WAIT_MAX_S


def test_peers_that_are_remembered_are_bounded() -> None:
    throttle = ProofThrottle()
    for _ in range(PROOFS_PER_S + 1):
        throttle.wait_s("first", 1.0)
    for number in range(PEERS_MAX):
        throttle.wait_s(f"peer {number}", 1.0)
    assert len(throttle._peers) == PEERS_MAX
    assert throttle.wait_s("first", 1.0) == 0.0, "it is forgotten"
