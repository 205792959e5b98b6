"""A run of ``lb send`` for a report: what its workers did meanwhile, and what came of it."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from lbcore.core.errors import LBError

from .connection import Facts, Target, connect
from .options import program_name
from .run_files import new_run

if TYPE_CHECKING:
    from lbcore.lab.runfile import RunFile

    from .send_report import Outcome

#: how often the broker is asked how its workers do
EVERY_S: Final = 0.25
#: a run that is longer is looked at less often: so many looks are kept
LOOKS_MAX: Final = 400
#: figures of a worker, by their names in a status
_FIGURES: Final = {"load": "backlog_s", "pending": "pending", "cpu": "cpu"}


class Watcher:
    """Asks the broker while its block runs, on a connection of its own."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        self._every_s = EVERY_S
        self.moments: list[float] = []
        self.looks: list[dict[str, Facts]] = []
        self.status: Facts = {}

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            with connect(self._target) as client:
                while True:
                    self.status = client.status()
                    self.moments.append(time.monotonic() - began)
                    self.looks.append({each["name"]: each for each in self.status["workers"]})
                    if len(self.looks) > LOOKS_MAX:
                        # every second one is enough, from now on too
                        del self.looks[1::2], self.moments[1::2]
                        self._every_s *= 2.0
                    if self._done.wait(self._every_s):
                        return
        except LBError:
            return  # the report has what was seen until then

    def series(self) -> dict[str, Any]:
        """What was seen, worker by worker."""
        names = list(dict.fromkeys(name for look in self.looks for name in look))
        return {
            "moments": self.moments,
            "workers": {
                name: {
                    figure: [look.get(name, {}).get(key) for look in self.looks]
                    for figure, key in _FIGURES.items()
                }
                for name in names
            },
        }


def run_of_send(outcome: Outcome, watcher: Watcher) -> RunFile:
    """What a report shows of a run of ``send``."""
    from lbcore.lab.measures import GRID

    tally, status = outcome.tally, watcher.status
    again = " ".join([program_name(), *map(shlex.quote, sys.argv[1:])])
    run = new_run("send", f"{outcome.title}: {tally.answered:,} requests sent", again)
    broker = status.get("broker", {})
    policy = str(broker.get("policy", "")) or "as sent"
    run.settings = {
        "requests": outcome.count,
        "with a result": tally.succeeded,
        "failed": tally.failed,
        "seconds": round(outcome.seconds, 3),
        "results per second": round(outcome.throughput, 1),
        "errors": [f"{kind}: {found.count}" for kind, found in tally.failures.items()] or "none",
        "policy": policy,
    }
    keys = ("name", "weight", "concurrency")
    workers = [{key: each.get(key, 1) for key in keys} for each in status.get("workers", ())]
    services = list(tally.services.values())
    ran = sum(len(each) for each in services)
    total_s = sum((each.mean or 0.0) * len(each) for each in services)
    run.topology = {
        "policy": policy,
        "workers": workers,
        "mean_service_s": total_s / ran if ran else None,
    }
    latencies = tally.latencies
    if tally.succeeded:
        p50, p99, p999 = latencies.quantiles(0.5, 0.99, 0.999)
        run.policies = [
            {
                "policy": policy,
                "mean": latencies.mean,
                "p50": p50,
                "p99": p99,
                "p999": p999,
                "makespan": outcome.seconds,
            }
        ]
        values = latencies.quantiles(*GRID)
        run.quantiles[policy] = [
            (q, value) for q, value in zip(GRID, values, strict=True) if value is not None
        ]
    run.requests[policy] = {name: len(each) for name, each in sorted(tally.services.items())}
    if watcher.moments:
        run.series[policy] = watcher.series()
    return run
