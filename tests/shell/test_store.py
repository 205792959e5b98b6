"""The store: its thread, its lock, its file, and what it does when something is wrong with them."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace

import pytest

from lbcore.core.records import Batch, Failed, Found, NotWritten, StoreEvent, Written
from lbcore.shell import store as store_module
from lbcore.shell.store import Store, refuse_network
from lbcore.shell.store_file import APPLICATION_ID, Damaged, Keep, StoreError, StoreFile

from .faulty_disk import FULL, FaultyDisk, Operation
from .stored_work import CLIENT, new_file, request_of, result_of, run_of

PATIENCE_S = 30.0
FIRST = CLIENT << 32 | 1


def requests(*ids: int) -> Batch:
    """A batch of requests."""
    batch = Batch()
    batch.runs = run_of(*map(request_of, ids))
    return batch


def results(*ids: int) -> Batch:
    """A batch of results."""
    batch = Batch()
    batch.results = [result_of(request_id) for request_id in ids]
    return batch


class Listening:
    """A store and what it says."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.events: SimpleQueue[StoreEvent | Failed] = SimpleQueue()
        self.store = Store(folder, self.events.put, **more)  # type: ignore[arg-type]

    def next(self) -> StoreEvent | Failed:
        """What it says next."""
        return self.events.get(timeout=PATIENCE_S)


def test_what_is_put_is_written_in_order_and_found_later(tmp_path: Path) -> None:
    first = Listening(tmp_path)
    assert not first.store.exists
    batches = [requests(FIRST, FIRST + 1), results(FIRST), requests(FIRST + 2)]
    for batch in batches:
        first.store.put(batch)
    written: list[Batch] = []
    while len(written) < 3:
        event = first.next()
        assert isinstance(event, Written)
        written += event.batches
    assert written == batches
    first.store.ask(FIRST)
    first.store.ask(FIRST + 1)
    assert first.next() == Found(FIRST, result_of(FIRST)[1])
    assert first.next() == Found(FIRST + 1, None)
    first.store.close()
    assert [each.name for each in tmp_path.iterdir() if each.stat().st_size] == ["durable.db"]
    second = Listening(tmp_path)
    assert second.store.exists
    recovered = second.store.open()
    assert [request.id for request in recovered.requests] == [FIRST + 1, FIRST + 2]
    second.store.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "store"]


def test_what_was_begun_is_known_to_be_of_this_run_or_another(tmp_path: Path) -> None:
    first = Listening(tmp_path, run=(1 << 63) - 1)
    batch = requests(FIRST, FIRST + 1)
    batch.begun = [FIRST]
    first.store.put(batch)
    assert isinstance(first.next(), Written)
    first.store.close()
    for run, is_here in (((1 << 63) - 1, True), (7, False)):
        again = Listening(tmp_path, run=run)
        found = again.store.open().requests
        assert [(each.begun, each.begun_here) for each in found] == [
            (True, is_here),
            (False, False),
        ]
        again.store.close()


def test_what_waits_goes_in_one_transaction(tmp_path: Path) -> None:
    first = Listening(tmp_path)
    first.store.open()
    gate = threading.Event()
    deliver = first.store._deliver

    def slowly(event: StoreEvent | Failed) -> None:
        deliver(event)
        gate.wait(PATIENCE_S)

    first.store._deliver = slowly
    first.store.put(requests(FIRST))
    assert isinstance(first.next(), Written)
    batches = [requests(FIRST + number) for number in range(1, 51)]
    for batch in batches:
        first.store.put(batch)
    gate.set()
    assert first.next() == Written(batches)
    first.store.close()


def test_only_one_process_has_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_PATIENCE_S", 0.05)
    first, second = Listening(tmp_path), Listening(tmp_path)
    first.store.open()
    with pytest.raises(StoreError, match="another process keeps its durable requests"):
        second.store.open()
    first.store.close()
    second.store.open()
    second.store.close()


def test_a_folder_that_cannot_be_used_is_one_clear_refusal(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    late = Listening(tmp_path / "file" / "folder")
    batch = requests(FIRST)
    late.store.put(batch)
    event = late.next()
    assert isinstance(event, NotWritten)
    assert (event.batches, event.is_full) == ([batch], False)
    assert "its folder must be writable" in event.reason
    late.store.ask(FIRST)
    assert late.next() == Found(FIRST, None)
    late.store.close()


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path / "far"), fstype="nfs4"),
    ]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    refuse_network(tmp_path)
    with pytest.raises(StoreError, match="network file system"):
        refuse_network(tmp_path / "far" / "away")


def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    with FaultyDisk() as disk:
        full = Listening(tmp_path, connect=disk.connect)
        full.store.open()
        full.store.put(requests(FIRST))
        assert isinstance(full.next(), Written)

        def judge(operation: Operation) -> int:
            return FULL if operation.kind == "write" else 0

        disk.judge = judge
        batch = requests(FIRST + 1)
        full.store.put(batch)
        event = full.next()
        assert isinstance(event, NotWritten)
        assert (event.batches, event.is_full) == ([batch], True)
        disk.judge = lambda operation: 0
        full.store.put(requests(FIRST + 2))
        assert isinstance(full.next(), Written)
        full.store.close()
    after = new_file(tmp_path / "durable.db")
    assert [request.id for request in after.open().requests] == [FIRST, FIRST + 2]
    after.close()


def test_a_failed_fsync_ends_the_store(tmp_path: Path) -> None:
    with FaultyDisk() as disk:
        broken = Listening(tmp_path, connect=disk.connect)
        broken.store.open()
        disk.judge = lambda operation: 10 | 4 << 8 if operation.kind == "sync" else 0
        broken.store.put(requests(FIRST))
        event = broken.next()
        assert isinstance(event, Failed)
        assert "disk I/O error" in event.reason
        broken.store.close()


# ---- the file ------------------------------------------------------------------------------------


def spoil(path: Path, statement: str) -> None:
    """Change the file behind the store's back."""
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def written_file(path: Path) -> None:
    """A file with an open request and a result."""
    file = new_file(path)
    file.open()
    file.write([requests(FIRST, FIRST + 1), results(FIRST)])
    file.close()


def test_a_damaged_request_is_told(tmp_path: Path) -> None:
    path = tmp_path / "durable.db"
    for change in ("frame = x'00'", "task = 'other'", "at = at + 1", "crc = 7", "task = 3"):
        path.unlink(missing_ok=True)
        written_file(path)
        spoil(path, f"UPDATE requests SET {change}")
        file = new_file(path)
        recovered = file.open()
        assert (recovered.damaged, recovered.requests) == ([FIRST + 1], []), change
        file.close()


def test_a_damaged_result_is_told(tmp_path: Path) -> None:
    path = tmp_path / "durable.db"
    written_file(path)
    spoil(path, "UPDATE results SET frame = x'00'")
    file = new_file(path)
    file.open()
    with pytest.raises(Damaged, match="checksum"):
        file.find(FIRST)
    file.close()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("PRAGMA user_version = 99", "written by another version of lb"),
        (f"PRAGMA application_id = {APPLICATION_ID + 1}", "not one of lb's"),
    ],
)
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, statement: str, words: str) -> None:
    path = tmp_path / "durable.db"
    written_file(path)
    spoil(path, statement)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=words):
        new_file(path).open()
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_file_that_is_no_database(tmp_path: Path, size: int) -> None:
    path = tmp_path / "durable.db"
    path.write_bytes(b"x" * size)
    file = new_file(path)
    if size:
        with pytest.raises(StoreError, match="move it away"):
            file.open()
        assert path.read_bytes() == b"x" * size
    else:
        file.open()
        file.close()


def test_a_torn_page_is_told(tmp_path: Path) -> None:
    path = tmp_path / "durable.db"
    file = new_file(path)
    file.open()
    file.write([requests(*range(FIRST, FIRST + 200))])
    file.close()
    with open(path, "r+b") as raw:
        for page in range(2, os.path.getsize(path) // 4096):
            raw.seek(page * 4096)
            raw.write(b"\xff" * 4096)
    with pytest.raises(StoreError, match="damaged"):
        new_file(path).open()


def test_an_id_that_sqlite_cannot_hold_has_no_result(tmp_path: Path) -> None:
    file = new_file(tmp_path / "durable.db")
    file.open()
    largest = (1 << 63) - 1
    file.write([requests(largest), results(largest)])
    assert file.find(largest) == result_of(largest)[1]
    assert file.find((1 << 64) - 1) is None
    file.close()


@pytest.mark.parametrize("count", [1, 2, 3, 7, 9, 100, 540, 1025, 3000])
def test_any_number_of_rows_is_written_and_deleted(tmp_path: Path, count: int) -> None:
    file = new_file(tmp_path / "durable.db")
    file.open()
    ids = range(FIRST, FIRST + 2 * count)
    file.write([requests(*ids)])
    file.write([results(*ids[::2])])
    assert kept(file, ids) == list(ids[::2])
    file.close()
    file = new_file(tmp_path / "durable.db")
    assert [request.id for request in file.open().requests] == list(ids[1::2])
    assert file.results == count
    file.close()


def kept(file: StoreFile, ids: range) -> list[int]:
    """Of these the ones that have a result."""
    return [request_id for request_id in ids if file.find(request_id) is not None]


def test_old_results_go(tmp_path: Path) -> None:
    now = 1000.0
    file = StoreFile(
        tmp_path / "durable.db",
        synchronous="NORMAL",
        keep=Keep(seconds=100.0, results=10_000),
        clock=lambda: now,
    )
    file.open()
    ids = range(FIRST, FIRST + 300)
    for request_id in ids:
        file.write([requests(request_id), results(request_id)])
        now += 1.0
    assert len(kept(file, ids)) in (100, 101, 102)
    now += 1000.0
    while file.tidy():
        pass
    assert kept(file, ids) == []
    assert (file.results, file.result_bytes) == (0, 0)
    file.close()


@pytest.mark.parametrize("keep", [Keep(results=50), Keep(bytes=7000)])
def test_of_too_many_results_the_oldest_go(tmp_path: Path, keep: Keep) -> None:
    file = StoreFile(tmp_path / "durable.db", synchronous="NORMAL", keep=keep, clock=lambda: 1000.0)
    file.open()
    ids = range(FIRST, FIRST + 300)
    for request_id in ids:
        file.write([requests(request_id), results(request_id)])
    left = kept(file, ids)
    assert left == list(ids)[-len(left) :]
    assert 0 < file.results == len(left) <= keep.results
    assert file.result_bytes <= keep.bytes
    file.close()
    again = StoreFile(
        tmp_path / "durable.db", synchronous="NORMAL", keep=keep, clock=lambda: 1000.0
    )
    again.open()
    assert (again.results, again.result_bytes) == (file.results, file.result_bytes)
    again.close()
