"""Clients that stream through a system while it is changed, and the words to wait for a change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lbcore import Client
from tests.e2e.running import PATIENCE_S, RunningSystem, wait_until

#: three workers whose lines a test changes
LISTED = "[{name: worker-1}, {name: worker-2}, {name: worker-3}]"


class Stream:
    """A client that sends one request after the other, many at once, and checks the answers."""

    def __init__(self, client: Client, window: int = 40) -> None:
        self.client = client
        self.window = window
        self.sent = 0
        self.answered = 0
        self.errors: list[str] = []
        self.workers: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _calls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        while not self._stop.is_set():
            self.sent += 1
            yield ("sleep", {"seconds": 0.002}) if self.sent % 2 else ("noop", {})

    def _run(self) -> None:
        try:
            for reply in self.client.stream(self._calls(), window=self.window):
                self.answered += 1
                error = reply.error()
                if error is not None:
                    self.errors.append(str(error))
                self.workers.add(reply.worker)
        except BaseException as error:  # told in the main thread
            self.errors.append(repr(error))

    def start(self) -> None:
        self._thread.start()
        self.flow()

    def flow(self, count: int = 100) -> None:
        """Until so many more are answered."""
        goal = self.answered + count
        wait_until(lambda: self.errors or self.answered >= goal, "answers")
        assert not self.errors, self.errors[:3]

    def flows_to(self, *names: str) -> None:
        """Until each of these workers, and no other, answers."""
        self.flow()
        self.workers.clear()
        wait_until(lambda: self.errors or self.workers >= set(names), f"answers of {names}")
        assert not self.errors, self.errors[:3]
        assert self.workers == set(names)

    def finish(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the stream does not end"
        assert not self.errors, self.errors[:3]
        assert self.answered == self.sent


@contextmanager
def streaming(*systems: RunningSystem, clients: int = 2) -> Iterator[Stream]:
    """Clients stream until the end; the first one is given out."""
    streams = [Stream(lb.client()) for lb in systems for _ in range(clients)]
    for stream in streams:
        stream.start()
    yield streams[0]
    for stream in streams:
        stream.finish()


def save(lb: RunningSystem, *pairs: tuple[str, str]) -> None:
    """Change the file, as an editor does that writes another one and renames it."""
    text = lb.config.read_text()
    for old, new in pairs:
        assert old in text, f"{old!r} is not in the file"
        text = text.replace(old, new)
    fresh = lb.config.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.rename(lb.config)


def pids(lb: RunningSystem) -> dict[str, int | None]:
    return {worker.name: worker.pid for worker in lb.state().workers}


def wait_for_workers(lb: RunningSystem, *names: str) -> dict[str, int | None]:
    """Until these workers, and no others, run."""

    def there(state: Any) -> bool:
        running = [worker.name for worker in state.workers if worker.state == "RUNNING"]
        return sorted(running) == sorted(names) and len(state.workers) == len(names)

    lb.wait_for(there, f"exactly {names}")
    return pids(lb)


def last_change(lb: RunningSystem) -> Mapping[str, Any]:
    return lb.state().last_change or {}


def wait_for_change(lb: RunningSystem, condition: Callable[[Mapping[str, Any]], bool]) -> None:
    lb.wait_for(lambda state: condition(state.last_change or {}), "another change")


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"worker-{number}" for number in numbers)
