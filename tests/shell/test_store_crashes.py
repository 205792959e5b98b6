"""The store's promise under every way to die: what was acknowledged is there afterwards.

Each write and each fsync of a run fails in turn; the power goes at any moment, with any part of
what was not synced lost; the process is killed with SIGKILL at any moment.
"""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lbcore.shell.store_file import StoreError, StoreFull

from .faulty_disk import FULL, FaultyDisk, Operation, after_power_loss, failure_of
from .stored_work import Journal, compare, new_file, steps

REPOSITORY = Path(__file__).resolve().parent.parent.parent
#: more of the same, for a long run
MORE = int(os.environ.get("LB_STORE_HISTORIES", "1"))
STEPS = 100


def run_until_it_fails(path: Path, disk: FaultyDisk, seed: int, count: int = STEPS) -> Journal:
    """Write step after step, as the store does, and end with the first failure."""
    journal = Journal()
    file = new_file(path, disk.connect)
    try:
        file.open()
        for batches in steps(seed, count):
            for batch in batches:
                journal.note_put(batch)
            try:
                file.write(batches)
            except StoreFull:
                continue  # the broker goes on: nothing of it was written
            for batch in batches:
                journal.note_written(batch)
            file.checkpoint(100_000)
    except StoreError:
        pass
    finally:
        file.abandon()
    return journal


def counted(path: Path, seed: int) -> list[Operation]:
    """All operations of a run in which nothing fails."""
    with FaultyDisk() as disk:
        journal = run_until_it_fails(path, disk, seed)
    assert len(journal.requests) > STEPS
    assert {operation.kind for operation in disk.operations} == {"write", "sync", "truncate"}
    compare(path, journal)
    return list(disk.operations)


@pytest.mark.parametrize("is_full", [False, True], ids=["error", "full"])
def test_every_write_and_fsync_fails_in_turn(tmp_path: Path, is_full: bool) -> None:
    for seed in range(MORE):
        count = len(counted(tmp_path / f"all{seed}.db", seed))
        # in the suite a part of them, by chance; in a long run each one
        places = range(count) if MORE > 1 else random.sample(range(count), 25)
        for place in places:
            seen = 0

            def judge(operation: Operation, place: int = place) -> int:
                nonlocal seen
                seen += 1
                if seen - 1 < place:
                    return 0
                if is_full and operation.kind == "write":
                    return FULL if seen - 1 < place + 7 else 0
                return failure_of(operation) if seen - 1 == place else 0

            path = tmp_path / f"{seed}-{place}.db"
            with FaultyDisk() as disk:
                disk.judge = judge
                journal = run_until_it_fails(path, disk, seed)
            assert seen > place
            compare(path, journal)


def test_after_a_loss_of_power_everything_acknowledged_is_there(tmp_path: Path) -> None:
    for seed in range(1 + MORE // 10):
        path = tmp_path / f"power{seed}.db"
        with FaultyDisk() as disk:
            file = new_file(path, disk.connect)
            file.open()
            before = {name.name: name.read_bytes() for name in tmp_path.glob(f"power{seed}.db*")}
            disk.operations.clear()
            # (operations so far, journal) after each step
            marks: list[tuple[int, Journal]] = [(0, Journal())]
            for batches in steps(seed, STEPS):
                journal = copy.deepcopy(marks[-1][1])
                for batch in batches:
                    journal.note_put(batch)
                    marks[-1][1].note_put(batch)
                file.write(batches)
                for batch in batches:
                    journal.note_written(batch)
                marks.append((len(disk.operations), journal))
                file.checkpoint(100_000)
            file.abandon()
        rng = random.Random(seed)
        for number in range(40 * MORE):
            cut = rng.randrange(len(disk.operations) + 1)
            journal = next(journal for at, journal in reversed(marks) if at <= cut)
            image = tmp_path / f"image{seed}-{number}.db"
            for name, data in after_power_loss(before, disk.operations[:cut], rng).items():
                image.with_name(name.replace(path.name, image.name)).write_bytes(data)
            compare(image, journal)


def test_killed_at_any_moment_everything_acknowledged_is_there(tmp_path: Path) -> None:
    rng = random.Random(5)
    for number in range(6 * MORE):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, "-m", "tests.shell.stored_work", str(folder), "3", str(STEPS)]
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            first = [process.stdout.readline()]
            assert first == ["0\n"]
            time.sleep(rng.random() ** 2 * 0.3)  # the moment is the point, not a wait
            process.kill()
            lines = first + process.stdout.read().splitlines()
        journal = Journal()
        written = sum(line.strip().isdigit() for line in lines)
        for step, batches in enumerate(steps(3, STEPS)):
            for batch in batches:
                if step <= written:
                    journal.note_put(batch)
                if step < written:
                    journal.note_written(batch)
        compare(folder / "durable.db", journal)
