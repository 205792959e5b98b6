"""Does the simulation find anything?  Real mistakes, put back one at a time, and it must see each.

Each mistake is a piece of the code and what somebody could have written instead.  It is put into a
copy of the package, and seeds are run there, on one core, until a promise breaks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

import lbcore

PACKAGE = Path(lbcore.__file__).parent
#: CPU seconds in which a mistake has to be found
FOUND_S = 60.0

RUNNER = """
import sys, time
from lbcore.sim.run import Plan, execute
end = time.process_time() + float(sys.argv[1])
seed = 0
while time.process_time() < end:
    seed += 1
    outcome = execute(Plan(seed, 3000))
    if outcome.violation:
        print(f"seed {seed}, {time.process_time():.1f} s: {outcome.violation.strip()[-300:]}")
        sys.exit(0)
print(f"{seed} seeds and nothing seen")
sys.exit(1)
"""


class Mistake(NamedTuple):
    """One edit, or two; ``old`` stands in the file exactly once."""

    name: str
    file: str
    old: str
    new: str
    #: where one guard alone would make up for the other: file, old, new
    also: tuple[str, str, str] | None = None


MISTAKES = [
    Mistake(
        "answers kept for a client that was away are dropped when it is back",
        "core/broker.py",
        "            outbox.to_client(number, data)\n        return number",
        "            pass\n        return number",
    ),
    Mistake(
        "what a lost worker had pending is still counted",
        "core/losses.py",
        "    ledger.in_flight -= len(held)\n",
        "",
    ),
    Mistake(
        "what must not run twice is tried again",
        "core/losses.py",
        "    if idempotent and attempts < allowed:",
        "    if attempts < allowed:",
    ),
    Mistake(
        "one attempt too many before a request is quarantined",
        "core/losses.py",
        "    if idempotent and attempts < allowed:",
        "    if idempotent and attempts <= allowed:",
    ),
    Mistake(
        "what waits for a client that comes back is not known when it is sent again",
        "core/resume.py",
        "        client.known.update(request_id for request_id in ledger.queued_ids(number))\n",
        "",
    ),
    Mistake(
        "nobody looks whether a repeat was begun before",
        "core/resume.py",
        "    number = ledger.history.find(request_id)\n",
        "    number = None\n",
    ),
    Mistake(
        "a worker runs a repeat whose answer it does not have",
        "core/worker.py",
        "return Repeat.LOST if started and not idempotent else Repeat.RUN",
        "return Repeat.RUN",
    ),
    Mistake(
        "requests are given back, and run as well",
        "core/worker.py",
        "        ids: list[int] = []\n        pop = self.waiting.pop\n        while True:\n",
        "        return [each[0] for each in self.waiting]\n        while True:\n",
    ),
    Mistake(
        "those that wait behind the running one are blamed for a death",
        "core/losses.py",
        "        culprit = has_run and not innocent\n",
        "        culprit = True\n",
        (
            "core/losses.py",
            "        places = {place for place, entry in enumerate(held) if entry[0] in running}\n",
            "        places = set(range(len(held)))\n",
        ),
    ),
    Mistake(
        "a cancelled request that is given back is remembered for ever",
        "core/losses.py",
        "        elif request_id in ledger.answered:\n            ledger.answered.discard(",
        "        elif request_id in ledger.answered:\n            set().discard(",
    ),
    Mistake(
        "deadlines come too early",
        "core/broker.py",
        "ledger.deadlines[0][0] <= now:",
        "ledger.deadlines[0][0] <= now + 0.02:",
    ),
    Mistake(
        "a new broker gives client numbers away again",
        "core/broker.py",
        "        self.clients_seen = clients_seen\n",
        "        self.clients_seen = 0\n",
    ),
    Mistake(
        "a client does not send again what is unanswered",
        "core/session.py",
        "        found.frames.append(_resent(frame, left_ms or 0, age_ms))\n",
        "",
    ),
    Mistake(
        "a client takes an answer as often as it comes",
        "core/session.py",
        "            entry = book.pop(request_id, None)\n",
        "            entry = book.get(request_id)\n",
    ),
    Mistake(
        "a client's place in the queue is not given free",
        "core/queue.py",
        "        owner.count -= taken_count\n",
        "",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_is_found(tmp_path: Path, mistake: Mistake) -> None:
    shutil.copytree(PACKAGE, tmp_path / "lbcore", ignore=shutil.ignore_patterns("__pycache__"))
    edits = [(mistake.file, mistake.old, mistake.new)]
    for file, old, new in [*edits, *([mistake.also] if mistake.also else [])]:
        path = tmp_path / "lbcore" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has changed: adapt this mistake to it"
        path.write_text(text.replace(old, new))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUNNER), str(FOUND_S)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_has_a_name_of_its_own() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 12
