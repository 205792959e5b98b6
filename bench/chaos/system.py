"""The system under test: a real one, in a folder of its own, and every process of it by name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from lbcore.shell.config_file import load
from lbcore.shell.state import SystemState, read_state

if TYPE_CHECKING:
    from lbcore.shell.client import Client

ROOT = Path(__file__).resolve().parent.parent.parent
TASKS = Path(__file__).with_name("tasks.py")
#: in the environment of every process of a run, so that whatever is left can be found
MARK = "CHAOS_MARK"
#: far more than a command takes on a busy machine
PATIENCE_S = 60.0
#: a child that dies more often than five times in half a minute is given up, as it should be; the
#: work that harms its worker adds to what is done here
KILLS_MAX: Final = 4
KILLS_WINDOW_S: Final = 35.0
#: how long the last processes of a system that was killed may take to end
GONE_S = 2.0


class ChaosError(Exception):
    """The run cannot go on: the system does what no fault explains."""


class ChaosSystem:
    """One topology; ``up`` starts it, and may be called again after everything was killed."""

    def __init__(self, folder: Path, *, workers: int, worker_memory: str | None = None) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self._kills: dict[str, list[float]] = {}
        self.config = folder / "config.yaml"
        limits = ["drain_s: 5", *([f"worker_memory: {worker_memory}"] if worker_memory else [])]
        lines = [f"  - {{name: worker-{n}}}" for n in range(1, workers + 1)]
        # one that runs several at once: blame is harder there
        lines.append("  - {name: worker-threads, concurrency: 4}")
        text = ["name: chaos", "broker: {port: 0}", f"tasks: [{TASKS}]", "workers:", *lines]
        self.config.write_text("\n".join([*text, f"limits: {{{', '.join(limits)}}}", ""]))
        #: a line per fault, and what the clients are excused by: when everything was killed
        self.events = folder / "events.jsonl"
        self.events.touch()

    # ---- the command line ----------------------------------------------------------------------

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command of the CLI to its end.  Its output goes to a file, which no child of it
        can keep open."""
        output = self.folder / f"{arguments[0]}.out"
        with open(output, "w+") as file:
            done = subprocess.run(
                [sys.executable, str(ROOT / "lb.py"), *arguments],
                cwd=self.folder,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE_S,
                check=False,
            )
        return subprocess.CompletedProcess(
            done.args, done.returncode, output.read_text(errors="replace"), ""
        )

    def environment(self) -> dict[str, str]:
        """What every process of the run gets."""
        mine = {key: value for key, value in os.environ.items() if not key.startswith("LB_")}
        kept = {key: os.environ[key] for key in ("LB_NO_VENV",) if key in os.environ}
        # the folder in which clients find the secret; a short path, and nobody else's
        return {**mine, **kept, "XDG_RUNTIME_DIR": str(self.folder), MARK: self.mark}

    def up(self) -> None:
        """Start it in the background."""
        done = self.command("up", "-d")
        if done.returncode:
            raise ChaosError(f"up -d: exit code {done.returncode}\n{done.stdout}")

    def down(self) -> None:
        """Stop it; what was accepted is finished first."""
        done = self.command("down")
        if done.returncode:
            raise ChaosError(f"down: exit code {done.returncode}\n{done.stdout}")

    # ---- its processes -------------------------------------------------------------------------

    def state(self) -> SystemState | None:
        """What the supervisor says; None while there is none."""
        return read_state(load(self.config, environ={}))

    def pid(self, name: str) -> int | None:
        """The process of that name; None while there is none."""
        state = self.state()
        if state is None:
            return None
        if name == "supervisor":
            return state.pid
        return next(
            (each.pid for each in (state.broker, *state.workers) if each.name == name), None
        )

    def workers(self) -> list[str]:
        """The names of its workers."""
        state = self.state()
        return [] if state is None else [worker.name for worker in state.workers]

    def signal(self, name: str, number: signal.Signals) -> int | None:
        """Send a process of it a signal; its pid, or None when there was nobody, or when it was
        killed so often of late that once more would have the supervisor give it up."""
        pid = self.pid(name)
        if pid is None:
            return None
        if number is signal.SIGKILL and name != "supervisor":
            now = time.monotonic()
            recent = [at for at in self._kills.get(name, []) if at > now - KILLS_WINDOW_S]
            if len(recent) >= KILLS_MAX:
                return None
            self._kills[name] = [*recent, now]
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return None
        return pid

    def client(self, **options: Any) -> Client:
        """A client of the running system."""
        from lbcore.shell.client import Client

        return Client.from_topology(load(self.config, environ={}), **options)

    def note(self, fault: str, **detail: Any) -> None:
        """Write down that a fault was done."""
        line = json.dumps({"at": time.monotonic(), "fault": fault, **detail})
        with open(self.events, "a") as file:
            file.write(line + "\n")

    def survivors(self) -> list[psutil.Process]:
        """Every living process of it, however far it ran away."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return [each for each in found if _is_alive(each)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Poll until it is true.  Raises ``ChaosError``."""
    give_up_at = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() >= give_up_at:
            raise ChaosError(f"waited in vain for {what}")
        time.sleep(0.01)
