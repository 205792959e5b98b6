"""What the clients of a chaos run request: work that can be checked, and work that harms."""

from __future__ import annotations

import os
import time
import zlib

from lbcore import task

#: memory is taken in steps, as a leak would, so that a limit is met and not jumped over
_STEP_BYTES = 8 << 20
_STEP_S = 0.02


@task(name="chaos_check", weight=0.001)
def check(number: int, seconds: float = 0.0) -> int:
    """A number that the client can work out itself, after sleeping ``seconds``."""
    if seconds:
        time.sleep(seconds)
    return zlib.crc32(b"%d" % number)


@task(name="chaos_once", idempotent=False, weight=0.001)
def once(path: str, token: str, seconds: float = 0.0) -> str:
    """Leave a line that tells of this start: whoever finds two of one token has found a bug."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{token}\n".encode())
    finally:
        os.close(descriptor)
    if seconds:
        time.sleep(seconds)
    return token


@task(name="chaos_poison", weight=0.001)
def poison(code: int = 7) -> None:
    """End the worker that runs this."""
    os._exit(code)


@task(name="chaos_hog", weight=0.1)
def hog(mebibytes: int) -> int:
    """Take so much memory, and keep it for as long as this takes."""
    taken = []
    for _ in range(0, mebibytes << 20, _STEP_BYTES):
        taken.append(b"\x01" * _STEP_BYTES)
        time.sleep(_STEP_S)
    return sum(map(len, taken))
