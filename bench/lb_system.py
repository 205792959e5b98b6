"""A private lb, started and stopped through its command line, on free ports in its own folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contender import START_S, WORKERS, BenchError
from bench.remote import ROOT, environment

if TYPE_CHECKING:
    from lbcore.core.topology import Topology
    from lbcore.shell.client import Client

#: how long ``down`` may take; nothing that is worth waiting for runs then
DOWN_S = 20.0


class LbSystem:
    """One topology.  lbcore is imported only when used, so that peers are measured without it."""

    def __init__(
        self, folder: Path, *, unix: bool = False, workers: int = WORKERS, level: str = "memory"
    ) -> None:
        self._folder = folder
        self._file = folder / "config.yaml"
        self._file.write_text(topology_text(unix=unix, workers=workers, level=level))

    def up(self) -> float:
        """Run ``up -d``; how many seconds until it said that the system is ready."""
        started = time.perf_counter()
        self._run("up", "-d", timeout_s=START_S)
        return time.perf_counter() - started

    def down(self) -> None:
        """Run ``down``; kill the supervisor, with which everything dies, where that fails."""
        supervisor = self._supervisor_pid()
        if supervisor is None:
            return
        try:
            self._run("down", timeout_s=DOWN_S)
        except BenchError:
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor, signal.SIGKILL)
            raise

    def client(self) -> Client:
        """A client of the running system."""
        from lbcore.shell.client import Client

        return Client.from_topology(self._topology())

    def _topology(self) -> Topology:
        from lbcore.shell.config_file import load

        return load(self._file, environ={})

    def _supervisor_pid(self) -> int | None:
        from lbcore.shell.state import read_state

        state = read_state(self._topology())
        return None if state is None else state.pid

    def _run(self, command: str, *options: str, timeout_s: float) -> None:
        """Run a command of the CLI.  Its output goes to a file: a pipe would wait for children."""
        output = self._folder / f"{command}.out"
        arguments = [sys.executable, str(ROOT / "lb.py"), command, *options, "-c", str(self._file)]
        with open(output, "wb") as file:
            try:
                code = subprocess.run(
                    arguments,
                    cwd=self._folder,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=timeout_s,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                raise BenchError(f"`lb.py {command}` took longer than {timeout_s:.0f} s") from None
        if code:
            said = output.read_text(errors="replace").strip().splitlines()[-2:]
            words = " / ".join(line.strip() for line in said) or "it said nothing"
            raise BenchError(f"`lb.py {command}` ended with code {code}: {words}")


def topology_text(*, unix: bool, workers: int, level: str = "memory") -> str:
    """The YAML of a private topology; what waits when it stops is given up at once."""
    if unix:
        listed = [f"  - {{name: worker-{n}, path: worker-{n}.sock}}" for n in range(1, workers + 1)]
        addresses = ["broker: {path: broker.sock}", "workers:", *listed]
    else:
        addresses = ["broker: {host: 127.0.0.1, port: 0}", f"workers: {{count: {workers}}}"]
    more = ["limits: {drain_s: 0.2}", f"durability: {{level: {level}}}"]
    return "\n".join(["name: bench", *addresses, *more, ""])


def memory_of(pid: int) -> dict[str, Any]:
    """Resident and unshared bytes of a process."""
    import psutil

    figures = psutil.Process(pid).memory_full_info()
    return {"rss_bytes": int(figures.rss), "uss_bytes": int(figures.uss)}
