"""Work for a store, and the journal of what was acknowledged: the same for every way to die."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lbcore.core.frames import reply_frame, request_frame
from lbcore.core.records import Batch, StoredRun
from lbcore.shell.store_file import Connect, Keep, StoreFile, connect

CLIENT = 7


class Request(NamedTuple):
    """One request as it is to be found again."""

    id: int
    task: str
    frame: bytes


def run_of(*requests: Request) -> list[StoredRun]:
    """The same as they are written."""
    return [StoredRun(request.task, [(request.id, request.frame)]) for request in requests]


def ids_of(batch: Batch) -> list[int]:
    """The ids of a batch's requests."""
    return [request_id for run in batch.runs for request_id, _ in run.entries]


def request_of(request_id: int) -> Request:
    """The request with that id; its bytes follow from the id."""
    body = random.Random(request_id).randbytes(request_id % 300)
    return Request(request_id, f"task{request_id % 3}", request_frame(request_id, 1, body))


def result_of(request_id: int) -> tuple[int, bytes]:
    """And its result."""
    body = random.Random(-request_id).randbytes(request_id % 200)
    return request_id, reply_frame(request_id, 1, body, service_s=0.5)


@dataclass
class Journal:
    """What was handed to a store, and what of it was acknowledged."""

    requests: set[int] = field(default_factory=set)
    begun: set[int] = field(default_factory=set)
    results: set[int] = field(default_factory=set)
    clients: int = 0
    put: set[int] = field(default_factory=set)
    put_results: set[int] = field(default_factory=set)

    def note_put(self, batch: Batch) -> None:
        """This is about to be written."""
        self.put.update(ids_of(batch))
        self.put_results.update(request_id for request_id, _ in batch.results)

    def note_written(self, batch: Batch) -> None:
        """The store said that this is written."""
        self.requests.update(ids_of(batch))
        self.begun.update(batch.begun)
        self.results.update(request_id for request_id, _ in batch.results)
        self.clients = max(self.clients, batch.clients)


def steps(seed: int, count: int) -> Iterator[list[Batch]]:
    """``count`` transactions of requests, marks and results, the same ones for a seed."""
    rng = random.Random(seed)
    opened: list[int] = []
    last = 0
    for _ in range(count):
        batches = []
        for _ in range(rng.choice((1, 1, 3))):
            batch = Batch()
            for _ in range(rng.choice((0, 1, 1, 3, 10, 140))):
                last += 1
                batch.runs += run_of(request_of(CLIENT << 32 | last))
            done = [number for number in opened if rng.random() < 0.3]
            batch.begun = [number for number in done if number % 5 == 0]
            batch.results = [result_of(number) for number in done if number % 5]
            opened = [number for number in opened if number not in set(done)]
            opened += ids_of(batch)
            batch.clients = rng.choice((0, 0, CLIENT + last))
            batches.append(batch)
        yield batches


def new_file(path: Path, make: Connect = connect, synchronous: str = "FULL") -> StoreFile:
    """A store's file that keeps everything."""
    return StoreFile(path, synchronous=synchronous, keep=Keep(), clock=lambda: 1000.0, connect=make)


def compare(path: Path, journal: Journal) -> None:
    """Open the file as the next process would, and hold what it has against the journal."""
    file = new_file(path)
    recovered = file.open()
    try:
        assert not recovered.damaged
        still_open = {request.id: request for request in recovered.requests}
        for request in recovered.requests:
            written = request_of(request.id)
            assert (request.task, request.frame) == (written.task, written.frame)
            assert request.id in journal.put, "a request that nobody sent"
        for request_id in journal.put_results:
            found = file.find(request_id)
            assert found is None or found == result_of(request_id)[1]
            assert request_id not in journal.results or found, f"result of {request_id} is lost"
            assert not (found and request_id in still_open), "done, and to be run again"
        for request_id in journal.requests:
            assert request_id in still_open or file.find(request_id), f"{request_id} is lost"
        for request_id in journal.begun & journal.requests:
            assert still_open[request_id].begun, f"{request_id} would run twice"
        assert recovered.clients >= journal.clients
    finally:
        file.close()


def main(folder: str, seed: str, count: str) -> None:
    """A process to be killed: says each step that is written, one line of JSON each."""
    file = new_file(Path(folder) / "durable.db")
    file.open()
    for number, batches in enumerate(steps(int(seed), int(count))):
        file.write(batches)
        file.checkpoint(200_000)
        print(json.dumps(number), flush=True)
    print("done", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
