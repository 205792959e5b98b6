"""The benchmark's handle on an agent: start it, ask it, end it and all that it started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.contender import BenchError

ROOT = Path(__file__).resolve().parent.parent
#: how long an agent may take for one answer unless the caller knows better
ANSWER_S = 60.0
#: how long an agent may take to stop what it started before its process group is killed
STOP_S = 30.0


class Remote:
    """One contender in an agent process; a context manager that ends it.  Raises ``BenchError``."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder / f"{name}-{os.urandom(3).hex()}"
        self._folder.mkdir()
        self._log = folder / f"{name}.log"
        self._rest = b""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.agent", name, str(self._folder)],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The agent's process id, which is also its process group's."""
        return self._process.pid

    def __enter__(self) -> Remote:
        try:
            self._receive(ANSWER_S)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, operation: str, timeout_s: float = ANSWER_S, **arguments: Any) -> dict[str, Any]:
        """Have the agent do something and return its answer."""
        request = json.dumps({"operation": operation, "arguments": arguments})
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise BenchError(f"the agent ended; {self._last_words()}") from None
        return self._receive(timeout_s)

    def close(self) -> None:
        """End the agent and whatever is left of its process group."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        deadline = time.monotonic() + STOP_S
        while not _has_ended(process.pid) and time.monotonic() < deadline:
            time.sleep(0.005)
        # The leader is not yet waited for, so the number of its group cannot be another's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._rest:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise BenchError(f"no answer within {timeout_s:.0f} s")
            read = os.read(descriptor, 65536)
            if not read:
                raise BenchError(f"the agent ended; {self._last_words()}")
            self._rest += read
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"its last words: {lines[-1]}" if lines else "it said nothing"


def environment() -> dict[str, str]:
    """This process's environment without what would configure lb or colour its output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LB_")}
    return {**kept, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
