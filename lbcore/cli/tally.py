"""Counts the replies of ``lb send``: a tight loop, bounded memory, no object kept per request.

Latencies are those of successful requests; a worker's service times are those of every request it
ran.  Called by send and demo.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from lbcore.core.errors import TaskError
from lbcore.core.quantiles import EXACT_MAX, Quantiles

from .connection import Reply
from .interrupts import interrupts_deferred

#: replies between two foldings of the raw arrays into the quantiles: 1 MB of doubles
_BATCH: Final = 1 << 16

#: the kind under which a result counts that is not what the task promises
WRONG_RESULT: Final = "WrongResult"

#: says what is wrong with a reply's result, or None
Check = Callable[[Reply], str | None]


@dataclass(slots=True)
class Failure:
    """All failures of one kind; the texts are those of the first."""

    message: str
    task: str
    worker: str
    traceback: str = ""
    count: int = 0


class Tally:
    """What is known about the replies so far; another thread may read ``answered``."""

    __slots__ = (
        "_checks",
        "_latency_batch",
        "_service_batches",
        "_services_exact_max",
        "_task_of",
        "failed",
        "failures",
        "latencies",
        "services",
    )

    def __init__(
        self,
        task_of: Callable[[int], str],
        checks: Mapping[str, Check] | None = None,
        *,
        workers_expected: int = 1,
    ) -> None:
        """``task_of`` names the task of the call at a position; it is asked once for each."""
        self._task_of = task_of
        self._services_exact_max = EXACT_MAX // max(1, workers_expected)
        self._checks = checks or {}
        self._latency_batch: array[float] = array("d")
        self._service_batches: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        #: seconds from sending to answer, of successful requests
        self.latencies = Quantiles()
        #: by worker: seconds of service, of every request that it ran
        self.services: dict[str, Quantiles] = {}
        self.failures: dict[str, Failure] = {}
        self.failed = 0

    @property
    def succeeded(self) -> int:
        """How many requests have a right result."""
        return len(self.latencies) + len(self._latency_batch)

    @property
    def answered(self) -> int:
        """How many requests have an answer."""
        return self.succeeded + self.failed

    def consume(self, replies: Iterator[Reply], *, mixed: bool = False) -> None:
        """Count every reply.  When ``replies`` raises, all that came before is counted.

        ``mixed`` says that the replies are of several tasks.
        """
        take = self._take_each if mixed or self._checks else self._take
        try:
            while take(islice(replies, _BATCH)):
                self._fold()
        finally:
            self._fold()

    def _take(self, replies: Iterator[Reply]) -> bool:
        """The hot loop, for one task without a check; whether there was any reply."""
        before = self.answered
        services, add_latency = self._service_batches, self._latency_batch.append
        for reply in replies:
            if reply.status:
                self._add_failure(reply, self._task_of(reply.index))
            else:
                services[reply.worker].append(reply.service_s)
                add_latency(reply.latency_s)
        return self.answered > before

    def _take_each(self, replies: Iterator[Reply]) -> bool:
        """As ``_take``, for any tasks; looks into the results of those that have a check."""
        before = self.answered
        services, add_latency = self._service_batches, self._latency_batch.append
        task_of, find_check = self._task_of, self._checks.get
        for reply in replies:
            task = task_of(reply.index)
            if reply.status:
                self._add_failure(reply, task)
                continue
            check = find_check(task)
            wrong = check(reply) if check is not None else None
            if wrong is not None:
                self._add_wrong_result(reply, task, wrong)
            else:
                services[reply.worker].append(reply.service_s)
                add_latency(reply.latency_s)
        return self.answered > before

    def _fold(self) -> None:
        """Move the raw values into the quantiles; an interrupt halfway would count them twice."""
        with interrupts_deferred():
            self._fold_batches()

    def _fold_batches(self) -> None:
        for worker, batch in self._service_batches.items():
            if worker not in self.services:
                self.services[worker] = Quantiles(self._services_exact_max)
            self.services[worker].extend(batch)
            del batch[:]
        self.latencies.extend(self._latency_batch)
        del self._latency_batch[:]

    def _add_failure(self, reply: Reply, task: str) -> None:
        error = reply.error()
        kind = error.kind if error is not None else f"Status{reply.status}"
        if kind not in self.failures:
            trace = error.traceback if isinstance(error, TaskError) else ""
            self.failures[kind] = Failure(_describe(error), task, reply.worker, trace)
        self._count_failure(kind, reply)

    def _add_wrong_result(self, reply: Reply, task: str, wrong: str) -> None:
        if WRONG_RESULT not in self.failures:
            self.failures[WRONG_RESULT] = Failure(wrong, task, reply.worker)
        self._count_failure(WRONG_RESULT, reply)

    def _count_failure(self, kind: str, reply: Reply) -> None:
        self.failures[kind].count += 1
        self.failed += 1
        if reply.worker:
            self._service_batches[reply.worker].append(reply.service_s)


def _describe(error: Exception | None) -> str:
    """The error in a line; for an exception in a task its type comes first."""
    if isinstance(error, TaskError):
        return f"{error.type_name}: {error}" if str(error) else error.type_name
    return str(error) if error is not None else ""
