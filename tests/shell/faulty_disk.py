"""A disk for SQLite that fails when told, and remembers what was really written and synced.

A VFS in ctypes around SQLite's own: each file's ``xWrite``, ``xTruncate`` and ``xSync`` go through
here.  So every single write and fsync of the code under test can be made to fail, and from the
record any state can be built that a disk may have after the power was lost: all that was synced,
and of the rest whatever it likes.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import itertools
import random
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p, cast
from pathlib import Path
from typing import Any, NamedTuple

import pytest

IOERR_WRITE = 10 | 3 << 8
IOERR_FSYNC = 10 | 4 << 8
IOERR_TRUNCATE = 10 | 6 << 8
FULL = 13
SECTOR = 512

_numbers = itertools.count(1)


class Operation(NamedTuple):
    """One call that changes what is on the disk."""

    kind: str
    file: str
    offset: int = 0
    data: bytes = b""


class _File(ctypes.Structure):
    _fields_ = (("methods", c_void_p),)


class _Methods(ctypes.Structure):
    _fields_ = (
        ("version", c_int),
        *[(name, c_void_p) for name in ("close", "read", "write", "truncate", "sync")],
        *[(f"other_{number}", c_void_p) for number in range(13)],
    )


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", c_int),
        ("file_bytes", c_int),
        ("path_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        *[(f"other_{number}", c_void_p) for number in range(14)],
    )


_OPEN = CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(_File), c_int, c_void_p)
_WRITE = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_TRUNCATE = CFUNCTYPE(c_int, c_void_p, c_int64)
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)


def _library() -> Any:
    library = ctypes.CDLL(_sqlite3.__file__)
    try:
        find, register = library.sqlite3_vfs_find, library.sqlite3_vfs_register
    except AttributeError:
        pytest.skip("this Python's SQLite hides its functions")
    find.restype, find.argtypes = POINTER(_Vfs), (c_char_p,)
    register.restype, register.argtypes = c_int, (c_void_p, c_int)
    library.sqlite3_vfs_unregister.argtypes = (c_void_p,)
    return library


class FaultyDisk:
    """One VFS under a name of its own; ``connect`` opens databases on it.

    A context manager: every file on it must be closed before its end.
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        #: called before each operation; what it returns but 0 is the operation's failure
        self.judge: Callable[[Operation], int] = lambda operation: 0
        self._kept: list[Any] = []
        self._library = library = _library()
        below = library.sqlite3_vfs_find(None)
        self._below_open = cast(below.contents.open, _OPEN)
        self.name = f"faulty{next(_numbers)}"
        self._vfs = _Vfs.from_buffer_copy(below.contents)
        self._vfs.name = self.name.encode()
        self._open_callback = _OPEN(self._open)
        self._vfs.open = cast(self._open_callback, c_void_p)
        assert library.sqlite3_vfs_register(ctypes.byref(self._vfs), 0) == 0

    def __enter__(self) -> FaultyDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.sqlite3_vfs_unregister(ctypes.byref(self._vfs))

    def connect(self, path: str) -> sqlite3.Connection:
        """As ``store_file.connect``, on this disk."""
        return sqlite3.connect(
            f"file:{path}?vfs={self.name}", uri=True, isolation_level=None, check_same_thread=False
        )

    def _open(self, vfs: Any, path: Any, file: Any, flags: int, out: Any) -> int:
        code = int(self._below_open(vfs, path, file, flags, out))
        if code == 0 and file.contents.methods:
            name = ctypes.string_at(path).decode() if path else ""
            self._wrap(file, Path(name).name)
        return code

    def _wrap(self, file: Any, name: str) -> None:
        below = cast(file.contents.methods, POINTER(_Methods)).contents
        methods = _Methods.from_buffer_copy(below)
        write, truncate = cast(below.write, _WRITE), cast(below.truncate, _TRUNCATE)
        sync = cast(below.sync, _SYNC)

        def do_write(this: Any, data: Any, size: int, offset: int) -> int:
            operation = Operation("write", name, offset, ctypes.string_at(data, size))
            return self._note(operation) or write(this, data, size, offset)

        def do_truncate(this: Any, size: int) -> int:
            return self._note(Operation("truncate", name, size)) or truncate(this, size)

        def do_sync(this: Any, flags: int) -> int:
            return self._note(Operation("sync", name)) or sync(this, flags)

        callbacks = _WRITE(do_write), _TRUNCATE(do_truncate), _SYNC(do_sync)
        methods.write, methods.truncate, methods.sync = (
            cast(callback, c_void_p) for callback in callbacks
        )
        self._kept += (methods, callbacks)
        file.contents.methods = ctypes.addressof(methods)

    def _note(self, operation: Operation) -> int:
        code = self.judge(operation)
        if not code:
            self.operations.append(operation)
        return code


def failure_of(operation: Operation) -> int:
    """The code with which SQLite learns that this operation failed."""
    return {"write": IOERR_WRITE, "sync": IOERR_FSYNC, "truncate": IOERR_TRUNCATE}[operation.kind]


def after_power_loss(
    before: dict[str, bytes], operations: list[Operation], rng: random.Random
) -> dict[str, bytes]:
    """One state of the files after these operations and a loss of power.

    What was synced is there.  Of each later write any part may be: all, nothing, or some sectors.
    """
    files = defaultdict(bytearray, {name: bytearray(data) for name, data in before.items()})
    unsynced: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        if operation.kind == "sync":
            for earlier in unsynced.pop(operation.file, ()):
                _apply(files[operation.file], earlier)
        else:
            unsynced[operation.file].append(operation)
    share = rng.choice((0.0, 0.5, 0.9, 1.0))
    for name, lost in unsynced.items():
        for operation in lost:
            if rng.random() < share:
                _apply(files[name], _torn(operation, rng))
    return {name: bytes(data) for name, data in files.items()}


def _torn(operation: Operation, rng: random.Random) -> Operation:
    if operation.kind == "truncate" or rng.random() < 0.7:
        return operation
    cut = rng.randrange(len(operation.data) + 1) // SECTOR * SECTOR
    return operation._replace(data=operation.data[:cut])


def _apply(data: bytearray, operation: Operation) -> None:
    if operation.kind == "truncate":
        del data[operation.offset :]
        return
    end = operation.offset + len(operation.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    data[operation.offset : end] = operation.data
