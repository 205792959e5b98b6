"""The store of durable requests: a thread that writes what the broker's core hands it.

Group commit: while one transaction is on its way to the disk the next batches gather, and then go
together in one transaction with one fsync.  So a lone request waits for nobody, and a thousand in
flight share the price of the disk.  The thread spends its time in SQLite and in system calls, both
without the interpreter's lock.

Whatever fails but for want of space ends the store: nobody may write on after a failed fsync and
assume.  Its owner ends as well, and the next process reads what is really there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import psutil

from lbcore.core.records import Batch, Failed, Found, NotWritten, Recovered, StoreEvent, Written

from .state import STORE_NAME
from .store_file import Connect, Damaged, Keep, StoreError, StoreFile, StoreFull, connect

#: most batches in one transaction
GROUP_MAX: Final = 4096
#: how often old results are looked for, and how soon after the last request the log is emptied
IDLE_S: Final = 1.0
#: another process that ends lets go of the file within this
LOCK_PATIENCE_S: Final = 2.0
LOCK_PAUSE_S: Final = 0.01
#: file systems on which neither a lock nor an fsync is worth what it says
NETWORK_FILE_SYSTEMS: Final = frozenset(
    (
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "pvfs2",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "fuse.ceph",
        "fuse.davfs2",
        "fuse.glusterfs",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
    )
)


class Store:
    """Batches in, events out; see the module's text."""

    def __init__(
        self,
        folder: Path,
        deliver: Callable[[StoreEvent | Failed], None],
        *,
        synchronous: str = "FULL",
        keep: Keep | None = None,
        connect: Connect = connect,
        clock: Callable[[], float] = time.time,
        run: int = 0,
    ) -> None:
        """``deliver`` is called in the store's own thread; ``run`` as in ``StoreFile``."""
        self.path = folder / STORE_NAME
        self._deliver = deliver
        self._file = StoreFile(
            self.path,
            synchronous=synchronous,
            keep=keep or Keep(),
            clock=clock,
            connect=connect,
            run=run,
        )
        self._lock = -1
        self._inbox: SimpleQueue[Batch | int | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        #: why there is nothing durable in this process; empty while there is
        self._refusal = ""

    @property
    def exists(self) -> bool:
        """Whether there is a file, and so perhaps unfinished requests."""
        return self.path.exists()

    def open(self) -> Recovered:
        """Open the file now and give back what is unfinished.  Raises ``StoreError``."""
        self._acquire()
        try:
            return self._file.open()
        except StoreError:
            self._release()
            raise

    def put(self, batch: Batch) -> None:
        """Have a batch written; what becomes of it is delivered, in the order of ``put``.

        A store that was not opened is opened for its first batch.
        """
        self._inbox.put(batch)
        self._start()

    def ask(self, request_id: int) -> None:
        """Look for a result; ``Found`` is delivered, after all that was put before."""
        self._inbox.put(request_id)
        self._start()

    def close(self) -> None:
        """Write all that was put, and close the file in good order."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
        else:
            self._end()

    # ---- the thread ----------------------------------------------------------------------------

    def _start(self) -> None:
        if self._thread is None:
            # a daemon: who leaves in a hurry does not wait for it
            self._thread = threading.Thread(target=self._run, name="store", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        try:
            if self._lock < 0:
                self._open_late()
            while self._turn():
                pass
            self._end()
        except StoreError as error:
            self._file.abandon()
            self._release()
            self._deliver(Failed(str(error)))
        except Exception as error:  # a mistake of ours: the owner must not wait for ever
            self._deliver(Failed(f"the store's thread failed: {error!r}"))
            raise

    def _open_late(self) -> None:
        try:
            # the file is new: there is nothing to recover
            self.open()
        except StoreError as error:
            self._refusal = str(error)

    def _turn(self) -> bool:
        """One transaction, or what can wait when there is nothing to write.  False at the end."""
        batches: list[Batch] = []
        questions: list[int] = []
        is_open = True
        try:
            item = self._inbox.get(timeout=IDLE_S)
            while True:
                if isinstance(item, Batch):
                    batches.append(item)
                elif item is None:
                    is_open = False
                    break
                else:
                    questions.append(item)
                if len(batches) + len(questions) >= GROUP_MAX:
                    break
                item = self._inbox.get_nowait()
        except Empty:
            if not batches and not questions:
                self._idle()
        if batches:
            self._write(batches)
        for request_id in questions:
            self._find(request_id)
        return is_open

    def _write(self, batches: list[Batch]) -> None:
        if self._refusal:
            self._deliver(NotWritten(batches, self._refusal, is_full=False))
            return
        try:
            self._file.write(batches)
        except StoreFull as error:
            self._deliver(NotWritten(batches, str(error), is_full=True))
            return
        self._deliver(Written(batches))
        self._file.checkpoint()

    def _find(self, request_id: int) -> None:
        frame, damage = None, ""
        if not self._refusal:
            try:
                frame = self._file.find(request_id)
            except Damaged as error:
                damage = str(error)
        self._deliver(Found(request_id, frame, damage))

    def _idle(self) -> None:
        if self._refusal:
            return
        with contextlib.suppress(StoreFull):
            while self._inbox.empty() and self._file.tidy():
                pass
            if self._inbox.empty():
                self._file.checkpoint(0)

    def _end(self) -> None:
        if self._lock >= 0:
            self._file.close()
            self._release()

    # ---- the lock ------------------------------------------------------------------------------

    def _acquire(self) -> None:
        """Be the only process with this file.  Raises ``StoreError``."""
        folder = self.path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_network(folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path.with_suffix(".lock"), flags, 0o600)
            # SQLite would make it by the umask
            os.close(os.open(self.path, flags, 0o600))
        except OSError as error:
            text = f"cannot keep durable requests in {self.path}: {error.strerror}"
            raise StoreError(f"{text}; its folder must be writable") from error
        give_up_at = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up_at:
                    os.close(descriptor)
                    text = f"another process keeps its durable requests in {self.path}"
                    raise StoreError(f"{text}; choose another durability.folder") from None
                time.sleep(LOCK_PAUSE_S)
            else:
                self._lock = descriptor
                return

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def refuse_network(folder: Path) -> None:
    """Raises ``StoreError`` for a folder on a network file system."""
    path = folder.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    for place in (path, *path.parents):
        if place in mounts:
            if mounts[place].lower() in NETWORK_FILE_SYSTEMS:
                raise StoreError(
                    f"cannot keep durable requests in {folder}: it is on a network file system "
                    f"({mounts[place]}), which keeps no such promise; choose a local "
                    "durability.folder"
                )
            return
