"""The outcome of ``lb send`` as a table for people and as an object for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from .render import (
    Column,
    count_of,
    count_text,
    duration_text,
    make_table,
    number_text,
    printable,
    share_text,
    shorten,
)
from .tally import Tally

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: lines of a worker's traceback that are shown, from its end
_TRACEBACK_LINES: Final = 40

_COLUMNS = (
    Column("worker", "left"),
    Column("requests"),
    Column("share"),
    Column("service mean"),
    Column("service p99"),
    Column("CPU"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One finished, or interrupted, run of a plan."""

    title: str
    #: how many requests were asked for
    count: int
    seconds: float
    tally: Tally
    #: CPU of each worker during the run, 1.0 is one core; None where it is not known
    cpu: Mapping[str, float | None]
    #: why it ended early; empty when every request was answered
    ended_by: str = ""
    #: requests that were in flight then, and were taken back
    cancelled: int = 0

    @property
    def throughput(self) -> float:
        """Requests with a result, per second."""
        return self.tally.succeeded / self.seconds if self.seconds > 0 else 0.0


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The object that ``send --json`` prints; milliseconds are null when no request succeeded."""
    tally = outcome.tally
    latencies = tally.latencies
    p50, p90, p99 = latencies.quantiles(0.5, 0.9, 0.99)
    ran = sum(len(services) for services in tally.services.values())
    return {
        "task": outcome.title,
        "n": outcome.count,
        "ok": tally.succeeded,
        "failed": tally.failed,
        "cancelled": outcome.cancelled,
        "errors": {kind: failure.count for kind, failure in tally.failures.items()},
        "seconds": round(outcome.seconds, 6),
        "throughput": round(outcome.throughput, 3),
        "latency_ms": {
            "mean": _milliseconds(latencies.mean),
            "p50": _milliseconds(p50),
            "p90": _milliseconds(p90),
            "p99": _milliseconds(p99),
            "max": _milliseconds(latencies.maximum),
        },
        "workers": {
            worker: {
                "requests": len(services),
                "share": round(len(services) / ran, 6),
                "service_ms_mean": _milliseconds(services.mean),
            }
            for worker, services in sorted(tally.services.items(), key=_worker_order)
        },
    }


def print_outcome(console: Console, outcome: Outcome) -> None:
    """The summary, a row per worker, the latencies, and what went wrong."""
    tally = outcome.tally
    console.print(_summary(outcome))
    if tally.services:
        console.print()
        console.print(_worker_table(outcome))
        console.print()
    p50, p90, p99 = tally.latencies.quantiles(0.5, 0.9, 0.99)
    figures = {
        "mean": tally.latencies.mean,
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": tally.latencies.maximum,
    }
    if tally.succeeded:
        words = (f"{name} {duration_text(value)}" for name, value in figures.items())
        console.print("latency  " + "   ".join(words))
    print_failures(tally)


def print_failures(tally: Tally, *, stderr: bool = False) -> None:
    """How many failed of each kind, with the first message of each, and one traceback."""
    if not tally.failures:
        return
    click.echo(f"failed   {count_text(tally.failed)} of {count_text(tally.answered)}", err=stderr)
    ordered = sorted(tally.failures.items(), key=lambda item: -item[1].count)
    kind_width = max(len(kind) for kind in tally.failures)
    for kind, failure in ordered:
        head = f"  {count_text(failure.count):>8} {kind:<{kind_width}}  "
        click.echo(head + shorten(failure.message, max(40, 200 - len(head))), err=stderr)
    for kind, failure in ordered:
        if failure.traceback:
            where = f"task {printable(failure.task)} on {printable(failure.worker)}"
            click.echo(f"\nthe first {kind} came from {where}:", err=stderr)
            lines = printable(failure.traceback.rstrip(), lines=True).splitlines()
            for line in lines[-_TRACEBACK_LINES:]:
                click.echo(f"    {line}", err=stderr)


def _summary(outcome: Outcome) -> str:
    tally = outcome.tally
    if tally.answered == outcome.count:
        amount = count_of(outcome.count, "request")
    else:
        amount = f"{count_text(tally.answered)} of {count_of(outcome.count, 'request')}"
    rate = number_text(outcome.throughput)
    early = f" ({outcome.ended_by})" if outcome.ended_by else ""
    if outcome.cancelled:
        early = f" ({outcome.ended_by}; {count_text(outcome.cancelled)} taken back)"
    return (
        f"{shorten(outcome.title, 60)}: {amount} in {duration_text(outcome.seconds)}, "
        f"{rate} requests/s{early}"
    )


def _worker_table(outcome: Outcome) -> Table:
    table = make_table(_COLUMNS)
    services_by_worker = outcome.tally.services
    ran = sum(len(services) for services in services_by_worker.values())
    for worker, services in sorted(services_by_worker.items(), key=_worker_order):
        (p99,) = services.quantiles(0.99)
        table.add_row(
            shorten(worker, 20),
            count_text(len(services)),
            share_text(len(services) / ran, 1),
            duration_text(services.mean),
            duration_text(p99),
            share_text(outcome.cpu.get(worker)),
        )
    return table


def _worker_order(item: tuple[str, object]) -> tuple[str, int, str]:
    """``worker-10`` after ``worker-9``."""
    name = item[0]
    head = name.rstrip("0123456789")
    digits = name[len(head) :]
    return head, int(digits) if digits else -1, name


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 6)
