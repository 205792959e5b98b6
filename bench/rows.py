"""The rows of the table: what each one measures, beside whom, and the goals that judge it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from bench.contender import WORKERS, BenchError
from bench.measure import Pair
from bench.remote import Remote
from bench.results import Bound, Comparison, Figure, Goal, RowResult
from bench.session import Session

MIB: Final = 1 << 20
#: seconds of calibration and of one measurement where a round trip is timed
SINGLE_S: Final = 0.4
#: seconds of one side of an alternation of few and many workers
CHOICE_S: Final = 0.15
#: fresh systems whose memory is measured; it hardly varies
MEMORY_ROUNDS: Final = 3
#: and about how long each of them takes
MEMORY_ROUND_S: Final = 15.0
#: (lb's contender, mode, peer) of the rows with many requests in flight
MANY_PAIRS: Final = (
    ("lb", "stream", "zmq-plain"),
    ("lb", "stream", "zmq"),
    ("lb", "stream", "executor"),
    ("lb", "submit", "executor"),
    ("lb", "submit", "pool"),
    ("lb", "stream", "gearmand"),
    ("lb", "stream", "haproxy"),
)
#: those of the row of durable requests: beside requests that are not
DURABLE_PAIRS: Final = (
    ("lb-process", "process", "lb"),
    ("lb-disk", "disk", "lb"),
)
SINGLE_PAIRS: Final = (
    ("lb", "call", "relay"),
    ("lb-unix", "call, Unix", "relay-unix"),
    ("lb", "call", "executor"),
    ("lb", "call", "pool"),
    ("lb", "call", "zmq-plain"),
    ("lb", "call", "zmq"),
    ("lb", "call", "gearmand"),
    ("lb", "call", "haproxy"),
)
FLOORS: Final = ("relay", "relay-unix")
ZMQ_TITLES: Final = {"zmq-plain": "pyzmq broker, plain", "zmq": "pyzmq broker, tuned"}

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ManyProbe:
    """Requests per second with ``in_flight`` unanswered."""

    in_flight: int
    target_s: float

    def prepare(self, remote: Remote, mode: str) -> Arguments:
        """How many requests make one measurement."""
        common: Arguments = {"in_flight": self.in_flight, "mode": mode}
        calibrated = remote.ask("calibrate_many", target_s=self.target_s, **common)
        return {"count": calibrated["count"], **common}

    def measure(self, remote: Remote, arguments: Arguments) -> float:
        """Requests per second."""
        return float(remote.ask("many", **arguments)["rate"])


@dataclass(frozen=True, slots=True)
class SingleProbe:
    """The median round trip of one request at a time, in microseconds."""

    target_s: float

    def prepare(self, remote: Remote, mode: str) -> Arguments:
        """How many round trips make one measurement."""
        return {"count": remote.ask("calibrate_single", target_s=self.target_s)["count"]}

    def measure(self, remote: Remote, arguments: Arguments) -> float:
        """The p50 in microseconds."""
        return float(remote.ask("single", **arguments)["p50_us"])


@dataclass(frozen=True, slots=True)
class SpinProbe:
    """The time for a number of CPU-bound tasks submitted at once, in seconds."""

    count: int
    seconds: float

    def prepare(self, remote: Remote, mode: str) -> Arguments:
        """A few tasks as a warm-up; then always the same number."""
        remote.ask("spin", count=4 * WORKERS, seconds=self.seconds)
        return {"count": self.count, "seconds": self.seconds}

    def measure(self, remote: Remote, arguments: Arguments) -> float:
        """Seconds from the first submission to the last result."""
        # twice the CPU work would be one worker doing everything, and slowly
        timeout_s = 10.0 + 2 * self.count * self.seconds
        return float(remote.ask("spin", timeout_s, **arguments)["seconds"])


def measure_thousand(session: Session) -> None:
    """No-ops, 1,000 in flight."""
    row = _measure_many(session, "thousand", 1000)
    row.goals.append(_goal("1,000 in flight: stream", row.lb_figure("stream"), 500_000, "/s"))
    for peer in ("zmq-plain", "zmq"):
        text = f"1,000 in flight: stream / {ZMQ_TITLES[peer]}"
        row.goals.append(_goal(text, row.ratio_to(peer), 10, "x"))
    for mode in ("submit", "stream"):
        text = f"1,000 in flight: {mode} / ProcessPoolExecutor"
        row.goals.append(_goal(text, row.ratio_to("executor", mode), 25, "x"))


def measure_hundred(session: Session) -> None:
    """No-ops, 100 in flight."""
    row = _measure_many(session, "hundred", 100)
    for peer in ("zmq-plain", "zmq"):
        text = f"100 in flight: stream / {ZMQ_TITLES[peer]}"
        row.goals.append(_goal(text, row.ratio_to(peer), 5, "x"))


def measure_durable(session: Session) -> None:
    """Durable no-ops, 1,000 in flight: each is written twice before its answer is passed on."""
    row = session.new_row(key="durable", title="durable no-op, 1,000 in flight", unit="requests/s")
    session.release()
    probe = ManyProbe(1000, session.settings.target_s)
    for lb, mode, peer in session.plan(DURABLE_PAIRS):
        session.compare(row, probe, lb=lb, mode=mode, peer=peer, rounds=session.settings.rounds)
    for mode in ("process", "disk"):
        text = f"durable, 1,000 in flight: {mode}"
        row.goals.append(_goal(text, row.lb_figure(mode), 50_000, "/s"))


def _measure_many(session: Session, key: str, in_flight: int) -> RowResult:
    row = session.new_row(key=key, title=f"no-op, {in_flight:,} in flight", unit="requests/s")
    probe = ManyProbe(in_flight, session.settings.target_s)
    for lb, mode, peer in session.plan(MANY_PAIRS):
        session.compare(row, probe, lb=lb, mode=mode, peer=peer, rounds=session.settings.rounds)
    return row


def measure_single(session: Session) -> None:
    """No-ops, one at a time."""
    row = session.new_row(key="single", title="no-op, 1 at a time, p50", unit="us")
    settings = session.settings
    probe = SingleProbe(min(SINGLE_S, settings.target_s))
    for lb, mode, peer in session.plan(SINGLE_PAIRS):
        rounds = settings.short_rounds if peer in FLOORS else settings.rounds
        session.compare(row, probe, lb=lb, mode=mode, peer=peer, rounds=rounds)
    for peer, transport in zip(FLOORS, ("TCP", "Unix"), strict=True):
        text = f"1 at a time: p50 / relay floor, {transport}"
        row.goals.append(_goal(text, row.ratio_to(peer), 2.0, "x", "at most", aim=1.5))


def measure_spin(session: Session) -> None:
    """CPU-bound work."""
    settings = session.settings
    count, seconds = settings.spin_count, settings.spin_s
    title = f"spin {seconds * 1000:.0f} ms x {count:,}"
    row = session.new_row(key="spin", title=title, unit="s")
    probe = SpinProbe(count, seconds)
    for lb, mode, peer in session.plan((("lb", "submit", "executor"),)):
        session.compare(row, probe, lb=lb, mode=mode, peer=peer, rounds=settings.rounds)
    ideal_s = count * seconds / WORKERS
    taken_s = row.lb_figure("submit")
    ratio = None if taken_s is None else taken_s / ideal_s
    row.notes.append(f"CPU work / {WORKERS} = {ideal_s:.3f} s")
    row.goals.append(_goal("spin: time / (CPU work / 2)", ratio, 1.03, "x", "at most"))
    against = row.ratio_to("executor")
    row.goals.append(_goal("spin: time / ProcessPoolExecutor's", against, 1.0, "x", "at most"))


def measure_boot(session: Session) -> None:
    """The time of ``up -d``."""
    row = session.new_row(key="boot", title="up -d to ready, 3 workers", unit="s")
    session.release()
    values = _repeat(session, row, "lb-boot", "boot", "seconds", session.settings.short_rounds)
    row.figures.append(Figure(name="up -d", values=values, unit="s"))
    row.goals.append(_goal("up -d to ready, 3 workers", row.figure("up -d"), 0.5, "s", "at most"))


def measure_memory(session: Session) -> None:
    """The broker's memory, at rest and with requests waiting; each round is a fresh system."""
    settings = session.settings
    row = session.new_row(key="memory", title="memory of the broker", unit="MiB")
    session.release()
    samples: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for _ in range(min(settings.rounds, MEMORY_ROUNDS)):
        if samples and session.left_s() < MEMORY_ROUND_S:
            row.notes.append(f"rounds measured: {len(samples)}; the time was up")
            break
        with ExitStack() as stack:
            remote = session.begin("lb-memory", stack)
            if remote is None:
                break
            try:
                rest = remote.ask("rest")
                waiting = remote.ask(
                    "waiting", count=settings.waiting_count, body_bytes=settings.waiting_bytes
                )
            except BenchError as error:
                session.drop("lb-memory", str(error))
                break
            samples.append((rest, waiting))
    growth = f"{settings.waiting_count:,} waiting"
    for part in ("rss", "uss"):
        key, label = f"{part}_bytes", part.upper()
        at_rest = tuple(rest[key] / MIB for rest, _ in samples)
        grown = tuple((waiting[key] - rest[key]) / MIB for rest, waiting in samples)
        row.figures.append(Figure(name=f"at rest, {label}", values=at_rest, unit="MiB"))
        row.figures.append(Figure(name=f"{growth}, {label} growth", values=grown, unit="MiB"))
    row.notes.append(f"{settings.waiting_count:,} requests of {settings.waiting_bytes} bytes wait")
    at_rest_mib, growth_mib = row.figure("at rest, RSS"), row.figure(f"{growth}, RSS growth")
    row.goals.append(_goal("broker at rest, RSS", at_rest_mib, 40, "MiB", "at most"))
    text = f"{settings.waiting_count:,} requests waiting, RSS growth"
    row.goals.append(_goal(text, growth_mib, 100, "MiB", "at most"))


def measure_choice(session: Session) -> None:
    """The cost per choice, 4,096 workers against 4, for every policy; the goal is the default's."""
    heads = ("workers", "policy", "4,096", "4")
    row = session.new_row(key="choice", title="cost per choice", unit="us", heads=heads)
    session.release()
    with ExitStack() as stack:
        remote = session.begin("choice", stack)
        if remote is None:
            return
        try:
            for policy in remote.ask("policies")["policies"]:
                for mixed in (False, True):
                    _measure_policy(session, row, remote, policy, mixed, whole_request=False)
            for mixed in (False, True):
                _measure_policy(session, row, remote, "least_load", mixed, whole_request=True)
        except BenchError as error:
            session.drop("choice", str(error))
    row.notes.append("half the capacity in use; workers of equal or of mixed weights")
    for mode in ("equal", "mixed"):
        text = f"cost per choice, 4,096 / 4 {mode} workers"
        row.goals.append(_goal(text, row.ratio_to("least_load", mode), 3.0, "x", "at most"))


def _measure_policy(
    session: Session, row: RowResult, remote: Remote, policy: str, mixed: bool, whole_request: bool
) -> None:
    if row.comparisons and session.left_s() < 0:
        fleet = "mixed" if mixed else "equal"
        row.notes.append(f"{policy}, {fleet} workers: not measured, the time was up")
        return
    settings = session.settings
    answer = remote.ask(
        "cost",
        policy=policy,
        mixed=mixed,
        whole_request=whole_request,
        rounds=settings.rounds,
        slice_s=min(CHOICE_S, settings.target_s / 4),
    )
    name = f"{policy}, request" if whole_request else policy
    session.say(f"  {name}, {'mixed' if mixed else 'equal'} workers")
    costs = zip(answer["many_us"], answer["few_us"], strict=True)
    row.comparisons.append(
        Comparison(
            lb_mode="mixed" if mixed else "equal",
            peer=name,
            peer_title=name,
            pairs=tuple(Pair(many, few) for many, few in costs),
        )
    )


def _repeat(
    session: Session, row: RowResult, name: str, operation: str, key: str, rounds: int
) -> tuple[float, ...]:
    """One figure of a contender, ``rounds`` times."""
    values: list[float] = []
    with ExitStack() as stack:
        remote = session.begin(name, stack)
        if remote is None:
            return ()
        for done in range(rounds):
            if done and session.left_s() < 0:
                row.notes.append(f"rounds measured: {done} of {rounds}; the time was up")
                break
            value = session.figure(name, lambda: float(remote.ask(operation)[key]))
            if value is None:
                break
            values.append(value)
    return tuple(values)


def _goal(
    text: str,
    value: float | None,
    limit: float,
    unit: str,
    bound: Bound = "at least",
    aim: float | None = None,
) -> Goal:
    return Goal(text=text, value=value, bound=bound, limit=limit, unit=unit, aim=aim)


ROWS: Final[dict[str, Callable[[Session], None]]] = {
    "thousand": measure_thousand,
    "hundred": measure_hundred,
    "durable": measure_durable,
    "single": measure_single,
    "spin": measure_spin,
    "boot": measure_boot,
    "memory": measure_memory,
    "choice": measure_choice,
}
