"""Imports the tasks of a topology, or its policy, in a process of its own: will it work for good?

A module may print, hang, end the interpreter or crash it when it is imported: none of that reaches
the process that asks, and nothing is left running.  Called by ``lb check``.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from lbcore.core.errors import LBError
from lbcore.core.topology import Topology

#: an import that takes longer keeps workers from starting
IMPORT_TIMEOUT_S: Final = 30.0
#: how much longer the child may take to say where it hangs
GRACE_S: Final = 5.0

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_CHILD: Final = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from lbcore.shell.task_check import answer_parent; answer_parent()"
)
_FRAME: Final = re.compile(r'^  File "([^"\n<]+)", line (\d+) in', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TaskProblem:
    """Why a module of tasks cannot be used."""

    #: which entry of ``tasks``; None when it is about several
    index: int | None
    message: str


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """The names of the user's tasks, or what is wrong with their modules."""

    names: list[str]
    problems: list[TaskProblem]


def check_tasks(topology: Topology, timeout_s: float = IMPORT_TIMEOUT_S) -> TaskCheck:
    """Import the modules of ``topology.tasks`` as a worker would, with each worker's environment.

    Starts no process when there is no module.  ``timeout_s`` bounds one import of all of them.
    """
    if not topology.tasks:
        return TaskCheck([], [])
    check = TaskCheck([], [])
    request = {"modules": topology.tasks}
    environments = {tuple(sorted(worker.env.items())) for worker in topology.workers}
    for environment in sorted(environments):
        check = _check_once(topology, request, dict(environment), timeout_s)
        if check.problems:
            break
    return check


def check_policy(topology: Topology, timeout_s: float = IMPORT_TIMEOUT_S) -> str | None:
    """Import the policy as the broker would; what is wrong with it.  One built in is not tried."""
    if not topology.policy.is_own:
        return None
    request = {"topology": msgspec.json.encode(topology).decode()}
    problems = _check_once(topology, request, {}, timeout_s).problems
    return problems[0].message if problems else None


def _check_once(
    topology: Topology, what: Mapping[str, Any], environment: Mapping[str, str], timeout_s: float
) -> TaskCheck:
    request = {**what, "base": str(Path(topology.source).parent), "timeout_s": timeout_s}
    with tempfile.TemporaryFile() as last_words:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD, str(_PACKAGE.parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=last_words,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        # the child ends itself in time; this is for one that cannot
        timer = threading.Timer(timeout_s + GRACE_S, _kill_group, (process,))
        timer.start()
        try:
            answer = _ask(process, request)
            code = process.wait() if answer is None else None
        finally:
            timer.cancel()
            _kill_group(process)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        if answer is None:
            return TaskCheck([], [TaskProblem(None, _explain_end(code, last_words, timeout_s))])
    problems = [TaskProblem(item["index"], item["message"]) for item in answer["problems"]]
    return TaskCheck(answer["names"], problems)


def _ask(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Send the request, wait for the answer; None when the child ended without one."""
    if process.stdin is None or process.stdout is None:
        return None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    return dict(json.loads(line)) if line.endswith(b"\n") else None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the child and whatever the modules started in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _explain_end(code: int | None, last_words: IO[bytes], timeout_s: float) -> str:
    last_words.seek(0, os.SEEK_END)
    last_words.seek(max(0, last_words.tell() - 65536))
    text = last_words.read().decode(errors="replace")
    own = [frame for frame in _FRAME.findall(text) if _is_own(frame[0])]
    where = f"{os.path.relpath(own[0][0])}:{own[0][1]}: " if own else ""
    if "Timeout (" in text or code == -signal.SIGKILL:
        return f"{where}the import takes longer than {timeout_s:g} s"
    if code is not None and code < 0:
        return f"{where}the import kills its process ({signal.Signals(-code).name})"
    return f"{where}the import ends its process with exit code {code}"


def _is_own(path: str) -> bool:
    """Whether a frame is the user's, neither Python's nor ours."""
    return not path.startswith((str(Path(os.__file__).parent), str(_PACKAGE)))


def answer_parent() -> None:
    """The child: read one request on stdin, import, write one line of JSON, and end at once."""
    request = json.loads(sys.stdin.buffer.readline())
    faulthandler.enable()
    faulthandler.dump_traceback_later(request["timeout_s"], exit=True)
    # what modules print when they are imported goes nowhere, and never into the answer
    channel = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    if "topology" in request:
        answer = _import_policy(msgspec.json.decode(request["topology"], type=Topology))
    else:
        answer = _import_all(request["modules"], Path(request["base"]))
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(channel, data) :]
    # threads that a module started must not keep this process alive
    os._exit(0)


def _import_all(modules: list[str], base: Path) -> dict[str, Any]:
    from .tasks import load_tasks  # with the environment of a worker already in place

    problems: list[dict[str, Any]] = []
    names: list[str] = []
    for index, module in enumerate(modules):
        message = _failure(lambda module=module: load_tasks([module], base))
        if message is not None:
            problems.append({"index": index, "message": message})
    if not problems:
        # alone they may be good, and still claim one name twice
        built_in = load_tasks([], base)
        message = _failure(lambda: names.extend(load_tasks(modules, base)))
        names = [name for name in names if name not in built_in]
        if message is not None:
            problems.append({"index": None, "message": message})
    return {"names": names, "problems": problems}


def _import_policy(topology: Topology) -> dict[str, Any]:
    from .policies import load_policies

    message = _failure(lambda: load_policies(topology))
    problems = [] if message is None else [{"index": None, "message": message}]
    return {"names": [], "problems": problems}


def _failure(load: Any) -> str | None:
    try:
        load()
    except LBError as error:
        return str(error).removeprefix("tasks: ").removeprefix("policy: ")
    except BaseException as error:
        return f"the import raises {type(error).__name__}: {error}"
    return None
