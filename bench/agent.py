"""The process that holds one contender: ``python -m bench.agent NAME FOLDER``.

Reads one JSON request a line from its input, writes one JSON answer a line, and ends, with all it
started, when its input ends: however the benchmark dies, nothing is left running.  It is the leader
of a process group of its own, so that whoever started it can end what a broken ``stop`` left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bench.contender import BenchError, Contender
from bench.registry import load_contender


def main(arguments: list[str]) -> int:
    """Serve one contender until the input ends."""
    name, folder = arguments[0], Path(arguments[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # A library that prints must not be taken for an answer.
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, _leave)
    contender = load_contender(name)()
    try:
        contender.start(folder)
        answers.write(json.dumps({"ok": True}) + "\n")
        for line in sys.stdin:
            answers.write(json.dumps(_answer(contender, json.loads(line))) + "\n")
    except BrokenPipeError:
        return 1
    except Exception as error:
        answers.write(json.dumps(_failure(error)) + "\n")
        return 1
    finally:
        contender.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _answer(contender: Contender, request: dict[str, Any]) -> dict[str, Any]:
    operation = contender.operations().get(request["operation"])
    if operation is None:
        return {"error": f"{contender.title} has no operation {request['operation']!r}"}
    try:
        return {"ok": True, **operation(**request["arguments"])}
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> dict[str, Any]:
    if not isinstance(error, BenchError):
        traceback.print_exc()
    kind = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
    return {"error": f"{kind}{error}"}


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
