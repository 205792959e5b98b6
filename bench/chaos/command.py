"""``python lb.py bench chaos``: faults on a real system under checked load, and the verdict."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil

from bench.measure import percentile
from lbcore.core.errors import LBError

from .faults import FAULTS
from .load import ANSWER_S
from .system import ROOT, ChaosError, ChaosSystem

EPILOG = """\
examples:
  python lb.py bench chaos                     ten minutes of everything
  python lb.py bench chaos --seconds 20        the short form of CI
  python lb.py bench chaos --faults kill_broker --every 1

exit codes: 0 nothing was lost, answered twice or left behind; 1 something was;
2 wrong usage.
"""
#: the clients of a run: (kind, how many)
CLIENTS: Final = (
    ("stream", 2),
    ("submit", 2),
    ("once", 2),
    ("durable", 1),
    ("visit", 1),
    ("harm", 1),
)
WORKERS: Final = 3
WORKER_MEMORY: Final = "300 MiB"


@dataclass
class Verdict:
    """What a run found."""

    seed: str
    seconds: float
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    pauses: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def run(seconds: float, seed: str, every_s: float, names: Sequence[str], say: Any) -> Verdict:
    """One run from start to its verdict."""
    folder = Path(tempfile.mkdtemp(prefix="lb-chaos-"))
    system = ChaosSystem(folder, workers=WORKERS, worker_memory=WORKER_MEMORY)
    verdict = Verdict(seed=seed, seconds=seconds)
    clients: list[subprocess.Popen[bytes]] = []
    try:
        system.up()
        clients = _start_clients(system, seed)
        _do_faults(system, verdict, Random(seed), seconds, every_s, names, say)
        _finish(system, verdict, clients)
    except (ChaosError, LBError) as error:
        verdict.violations.append(str(error))
    finally:
        for client in clients:
            client.kill()
            client.wait()
        left = system.survivors()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                verdict.violations.append(f"left behind: {process.pid} {process.cmdline()}")
                process.kill()
        if verdict.violations:
            say(f"kept for a look: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return verdict


def _start_clients(system: ChaosSystem, seed: str) -> list[subprocess.Popen[bytes]]:
    kinds = [kind for kind, count in CLIENTS for _ in range(count)]
    clients = []
    for number, kind in enumerate(kinds):
        arguments = ["-m", "bench.chaos.load", str(system.folder), kind, str(number), seed]
        with open(system.folder / f"client-{number}-{kind}.out", "wb") as output:
            clients.append(
                subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    env=system.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            )
    return clients


def _do_faults(
    system: ChaosSystem,
    verdict: Verdict,
    rng: Random,
    seconds: float,
    every_s: float,
    names: Sequence[str],
    say: Any,
) -> None:
    weights = [FAULTS[name][1] for name in names]
    began = told_at = time.monotonic()
    while (now := time.monotonic()) < began + seconds:
        name = rng.choices(names, weights)[0]
        FAULTS[name][0](system, rng)
        verdict.faults[name] += 1
        if now - told_at > 30.0:
            told_at = now
            say(f"{now - began:.0f} s, {verdict.faults.total()} faults")
        time.sleep(rng.expovariate(1.0 / every_s))


def _finish(system: ChaosSystem, verdict: Verdict, clients: list[subprocess.Popen[bytes]]) -> None:
    """No more faults and no more work: everything must be answered, and nothing be left."""
    (system.folder / "stop").touch()
    give_up_at = time.monotonic() + ANSWER_S + 10.0
    for client in clients:
        try:
            client.wait(max(0.0, give_up_at - time.monotonic()))
        except subprocess.TimeoutExpired:
            verdict.violations.append(f"a client hangs: {client.args!r}")
    for number, client in enumerate(clients):
        report = system.folder / f"client-{number}.json"
        if not report.exists():
            verdict.violations.append(f"client {number} left no report ({client.returncode})")
            continue
        facts = json.loads(report.read_text())
        verdict.answers.update(facts["counts"])
        verdict.pauses += facts["pauses"]
        verdict.violations += [f"client {number}: {text}" for text in facts["violations"]]
    _check_once(system, verdict)
    _check_quiet(system, verdict)
    system.down()


def _check_once(system: ChaosSystem, verdict: Verdict) -> None:
    """No start twice, and a start for each answer."""
    for path in system.folder.glob("once-*.txt"):
        starts = Counter(path.read_text().split())
        twice = [token for token, count in starts.items() if count > 1]
        verdict.violations += [f"started {starts[token]} times: {token}" for token in twice]
        answered = path.with_suffix(".answered")
        told = Counter(answered.read_text().split()) if answered.exists() else Counter()
        verdict.violations += [
            f"answered and never started: {token}" for token in told if token not in starts
        ]
        verdict.answers["starts of what must not run twice"] += starts.total()


def _check_quiet(system: ChaosSystem, verdict: Verdict) -> None:
    """With all clients gone, nothing waits and nothing is pending."""
    give_up_at = time.monotonic() + 20.0
    with system.client() as client:
        while True:
            status = client.status()
            pending = sum(worker["pending"] for worker in status["workers"])
            if not pending and not status["broker"]["queued"]:
                return
            if time.monotonic() > give_up_at:
                queued = status["broker"]["queued"]
                verdict.violations.append(f"not quiet: {queued} queued, {pending} pending")
                return
            time.sleep(0.05)


def report(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON values; pauses are seconds without any answer for a client."""
    pauses = sorted(verdict.pauses)
    return {
        "seed": verdict.seed,
        "seconds": verdict.seconds,
        "faults": dict(verdict.faults),
        "answers": dict(verdict.answers),
        "pauses_s": {
            "count": len(pauses),
            **({f"p{q}": percentile(pauses, q / 100) for q in (50, 90, 99)} if pauses else {}),
            "max": pauses[-1] if pauses else 0.0,
        },
        "violations": verdict.violations,
    }


def run_command(arguments: Sequence[str]) -> int:
    """Run, report; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="lb.py bench chaos",
        description="Kill, stop and starve the processes of a real system under checked load.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S", help="default: 600")
    parser.add_argument("--seed", default="", metavar="TEXT", help="default: drawn and printed")
    parser.add_argument(
        "--every", type=float, default=0.8, metavar="S", help="mean pause between faults"
    )
    parser.add_argument(
        "--faults", default=",".join(FAULTS), metavar="NAMES", help=f"some of {', '.join(FAULTS)}"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(arguments)
    names = options.faults.split(",")
    if unknown := [name for name in names if name not in FAULTS]:
        parser.error(f"unknown faults: {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = options.seed or f"{time.time_ns():x}"

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    say(f"chaos, seed {seed}, {options.seconds:g} s")
    facts = report(run(options.seconds, seed, options.every, names, say))
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 1 if facts["violations"] else 0


def _print(facts: dict[str, Any]) -> None:
    print(f"seed {facts['seed']}, {facts['seconds']:g} s of faults")
    for title in ("faults", "answers", "pauses_s"):
        print(f"\n{title.replace('_s', ', s')}")
        for name, value in facts[title].items():
            print(
                f"  {name:38}{value:>12,}"
                if isinstance(value, int)
                else f"  {name:38}{value:12.3f}"
            )
    print()
    for text in facts["violations"]:
        print(f"VIOLATION: {text}")
    print("nothing lost, nothing twice, nothing left" if not facts["violations"] else "FAILED")
