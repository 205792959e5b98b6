"""One client process of a chaos run: sends work that it can check, and keeps its own books.

``python -m bench.chaos.load FOLDER KIND NUMBER SEED``.  It works until ``FOLDER/stop`` exists,
waits for the answers that are still out, writes ``FOLDER/client-NUMBER.json`` and ends.  What it
counts as a violation: an answer that is wrong, missing, there twice, or an error that no fault
explains.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from lbcore.core.errors import BrokerUnavailable, LBError
from lbcore.shell.client import Client
from lbcore.shell.config_file import load

if TYPE_CHECKING:
    from concurrent.futures import Future

#: how long a client goes on trying to find a system that is being started again
RECONNECT_S: Final = 60.0
#: how long an answer may take: longer than any series of faults
ANSWER_S: Final = 90.0
#: violations that are written down in full
KEPT_MAX: Final = 50
#: what random kills may do to a request that ran at each of them, with its evidence
EXCUSED: Final = ("WorkerLost", "Quarantined")


class Books:
    """What one client saw."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        #: the longest time without any answer, seconds, and of every interruption its length
        self.pauses: list[float] = []
        self._answer_at = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether the run wants no more work."""
        return (self.folder / "stop").exists()

    def answered(self, what: str) -> None:
        """One answer that is in order."""
        now = time.monotonic()
        if now - self._answer_at > 0.1:
            self.pauses.append(round(now - self._answer_at, 3))
        self._answer_at = now
        self.counts[what] += 1

    def violation(self, text: str) -> None:
        """Something that must not be."""
        self.counts["violations"] += 1
        if len(self.violations) < KEPT_MAX:
            self.violations.append(text)

    def lost_all(self, since: float, error: LBError) -> bool:
        """Whether a connection may have ended: everything was killed after ``since``."""
        for line in (self.folder / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            is_end = event["fault"] == "kill" and event.get("name") == "supervisor"
            if is_end and event["at"] >= since - 1.0:
                return True
        self.violation(f"the connection was given up: {error}")
        return False

    def write(self) -> None:
        """Leave the books for the run."""
        report = {
            "counts": self.counts,
            "violations": self.violations,
            "pauses": sorted(self.pauses)[-1000:],
        }
        path = self.folder / f"client-{self.number}.json"
        path.with_suffix(".new").write_text(json.dumps(report))
        path.with_suffix(".new").rename(path)


def connect(folder: Path) -> Client:
    """A client of the system, which may just be starting again."""
    give_up_at = time.monotonic() + RECONNECT_S
    while True:
        try:
            return Client.from_topology(load(folder / "config.yaml", environ={}))
        except BrokerUnavailable:
            if time.monotonic() >= give_up_at:
                raise
            time.sleep(0.02)


def sessions(
    books: Books,
    work: Callable[[Client, float], None],
    is_over: Callable[[], bool] | None = None,
) -> None:
    """Work with one client after the other until the run is over."""
    while not (is_over() if is_over else books.is_over):
        began = time.monotonic()
        try:
            with connect(books.folder) as client:
                work(client, began)
        except BrokerUnavailable as error:
            if not books.lost_all(began, error):
                return
            books.counts["systems lost"] += 1


def stream(books: Books, rng: Random) -> None:
    """Many small requests at once, a few of them longer."""

    def work(client: Client, began: float) -> None:
        #: position in the stream -> number, of what has no answer yet
        numbers: dict[int, int] = {}

        def calls() -> Iterator[tuple[str, dict[str, Any]]]:
            for index in itertools.count():
                if books.is_over:
                    return
                number = numbers[index] = rng.randrange(1 << 40)
                seconds = rng.uniform(0.001, 0.1) if rng.random() < 0.02 else 0.0
                yield "chaos_check", {"number": number, "seconds": seconds}

        for reply in client.stream(calls(), window=200):
            number = numbers.pop(reply.index, None)
            if number is None:
                books.violation(f"stream: answer {reply.index} came twice")
                continue
            _judge(books, "stream", number, reply.error(), reply.value)
        if numbers:
            books.violation(f"stream: {len(numbers)} requests have no answer")

    sessions(books, work)


def submit(books: Books, rng: Random) -> None:
    """Futures, of which some are cancelled, and calls one at a time."""

    def work(client: Client, began: float) -> None:
        while not books.is_over:
            futures: list[tuple[int, Future[Any]]] = []
            for _ in range(rng.randrange(1, 40)):
                number = rng.randrange(1 << 40)
                seconds = rng.uniform(0.0, 0.05)
                futures.append((number, client.submit("chaos_check", number, seconds)))
            cancelled = [each for each in futures if rng.random() < 0.1 and each[1].cancel()]
            books.counts["cancelled"] += len(cancelled)
            for number, future in futures:
                if future.cancelled():
                    continue
                try:
                    error = future.exception(ANSWER_S)
                except TimeoutError:
                    books.violation(f"submit: no answer within {ANSWER_S} s")
                    continue
                if isinstance(error, BrokerUnavailable):
                    raise error
                _judge(books, "submit", number, error, future.result)

    sessions(books, work)


def once(books: Books, rng: Random) -> None:
    """Work that must not run twice: each start leaves a line, which the run counts at the end."""
    path = str(books.folder / f"once-{books.number}.txt")
    answered = books.folder / f"once-{books.number}.answered"
    issued = 0

    def work(client: Client, began: float) -> None:
        nonlocal issued
        while not books.is_over:
            futures: list[tuple[str, Future[Any]]] = []
            for _ in range(rng.randrange(1, 20)):
                token = f"{books.number}-{issued}"
                issued += 1
                seconds = rng.uniform(0.0, 0.03)
                futures.append((token, client.submit("chaos_once", path, token, seconds)))
            for token, future in futures:
                try:
                    error = future.exception(ANSWER_S)
                except TimeoutError:
                    books.violation(f"once: no answer to {token} within {ANSWER_S} s")
                    continue
                if isinstance(error, BrokerUnavailable):
                    raise error
                if error is None:
                    if future.result() != token:
                        books.violation(f"once: {future.result()!r} is no answer to {token}")
                    with open(answered, "a") as file:
                        file.write(f"{token}\n")
                    books.answered("once")
                elif type(error).__name__ == "WorkerLost":
                    books.answered("once, worker lost")
                else:
                    books.violation(f"once: {type(error).__name__}: {error}")

    sessions(books, work)


def durable(books: Books, rng: Random) -> None:
    """Durable requests: once accepted each has to have a result, whatever dies, some that must not
    run twice among them."""
    path = str(books.folder / f"once-{books.number}.txt")
    accepted: dict[int, tuple[str, int]] = {}
    issued = 0

    def work(client: Client, began: float) -> None:
        nonlocal issued
        while accepted or not books.is_over:
            for _ in range(0 if books.is_over else rng.randrange(1, 20)):
                number, issued = rng.randrange(1 << 40), issued + 1
                token = f"{books.number}-{issued}"
                if rng.random() < 0.3:
                    request_id = client.enqueue("chaos_once", path, token)
                    accepted[request_id] = (token, 0)
                else:
                    request_id = client.enqueue("chaos_check", number)
                    accepted[request_id] = ("", number)
            for request_id in [*accepted]:
                token, number = accepted[request_id]
                value: Any = None
                error: LBError | None = None
                try:
                    value = client.result(request_id, timeout=ANSWER_S)
                except BrokerUnavailable:
                    raise
                except LBError as failure:
                    error = failure
                del accepted[request_id]
                if token and type(error).__name__ == "WorkerLost":
                    books.answered("durable once, worker lost")
                elif token and (error is not None or value != token):
                    books.violation(f"durable once: {value!r}, {type(error).__name__}: {error}")
                elif token:
                    books.answered("durable once")
                else:
                    _judge(books, "durable", number, error, partial(_itself, value))

    sessions(books, work, is_over=lambda: books.is_over and not accepted)


def harm(books: Books, rng: Random) -> None:
    """Requests that kill their worker or take all memory: each has to end as an error that says so,
    after no more than the allowed attempts."""

    def work(client: Client, began: float) -> None:
        while not books.is_over:
            task, argument = ("chaos_poison", 7) if rng.random() < 0.8 else ("chaos_hog", 600)
            try:
                future = client.submit(task, argument)
                error = future.exception(ANSWER_S)
            except TimeoutError:
                books.violation(f"{task}: no answer within {ANSWER_S} s")
                continue
            if isinstance(error, BrokerUnavailable):
                raise error
            if not isinstance(error, LBError) or type(error).__name__ not in EXCUSED:
                books.violation(f"{task}: {type(error).__name__}: {error}")
            elif int(getattr(error, "detail", {}).get("attempts", 0)) > 3:
                books.violation(f"{task}: {error} after more than 3 attempts")
            else:
                # each attempt takes its time: a pause here says nothing
                books.counts[task] += 1
            time.sleep(rng.uniform(1.0, 4.0))

    sessions(books, work)


def visit(books: Books, rng: Random) -> None:
    """Short visits: connect, one call, one look at the status, leave; some leave work behind."""
    while not books.is_over:
        began = time.monotonic()
        try:
            with connect(books.folder) as client:
                number = rng.randrange(1 << 40)
                for _ in range(rng.randrange(4)):
                    client.submit("chaos_check", number, 0.2)  # nobody waits for it
                future = client.submit("chaos_check", number, timeout=ANSWER_S)
                error = future.exception(ANSWER_S)
                if isinstance(error, BrokerUnavailable):
                    raise error
                _judge(books, "visit", number, error, future.result)
                client.status()
        except BrokerUnavailable as error:
            if not books.lost_all(began, error):
                return
            books.counts["systems lost"] += 1


def _itself(value: Any) -> Any:
    return value


def _judge(
    books: Books, what: str, number: int, error: BaseException | None, value: Callable[[], Any]
) -> None:
    if error is None:
        if value() == zlib.crc32(b"%d" % number):
            books.answered(what)
        else:
            books.violation(f"{what}: {value()!r} is no answer to {number}")
    elif type(error).__name__ in EXCUSED:
        # a kill met it at each of its attempts; rare, so it is counted and shown
        books.answered(f"{what}, {type(error).__name__}")
    else:
        books.violation(f"{what}: {type(error).__name__}: {error}")


KINDS: Final[dict[str, Callable[[Books, Random], None]]] = {
    "stream": stream,
    "submit": submit,
    "once": once,
    "durable": durable,
    "harm": harm,
    "visit": visit,
}


def main() -> int:
    """Run one client; returns its exit code."""
    folder, kind, number, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    books = Books(folder, number)
    try:
        KINDS[kind](books, Random(f"{seed}-{number}"))
    except Exception as error:
        books.violation(f"{kind}: {type(error).__name__}: {error}")
        raise
    finally:
        books.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
