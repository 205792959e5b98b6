"""The state folder: who holds it, what others read from it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.topology import Address, Topology
from lbcore.shell.state import (
    AlreadyRunning,
    ProcessState,
    StateError,
    StateFolder,
    SystemState,
    broker_address,
    is_locked,
    parse_address,
    read_state,
    state_folder,
)


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    """A topology in a folder of its own."""
    return Topology(
        name="test",
        broker=Address(port=8000),
        workers=(),
        source=str(tmp_path / "config.yaml"),
    )


def some_state(address: str = "127.0.0.1:4711") -> SystemState:
    broker = ProcessState(
        name="broker", pid=1, address=address, state="RUNNING", restarts=0, log="b.log"
    )
    return SystemState(
        pid=os.getpid(),
        started_at=0.0,
        create_time=1.0,
        name="test",
        config="config.yaml",
        state="RUNNING",
        broker=broker,
        workers=[],
    )


def test_what_is_written_is_read_while_the_lock_is_held(topology: Topology) -> None:
    assert read_state(topology) is None
    folder = StateFolder(topology)
    assert is_locked(topology)
    assert read_state(topology) is None, "nothing was written yet"
    folder.write(some_state())
    assert read_state(topology) == some_state()
    assert state_folder(topology).stat().st_mode & 0o777 == 0o700
    folder.remove()
    assert read_state(topology) is None
    assert not state_folder(topology).parent.exists(), "nothing is left"


def test_only_one_supervisor_holds_it(topology: Topology) -> None:
    folder = StateFolder(topology)
    with pytest.raises(AlreadyRunning, match="being started or stopped"):
        StateFolder(topology)
    folder.write(some_state())
    with pytest.raises(AlreadyRunning) as caught:
        StateFolder(topology)
    assert str(caught.value).startswith(f"already running (pid {os.getpid()}, since ")
    assert str(caught.value).endswith("broker at 127.0.0.1:4711)")
    assert caught.value.exit_code == 4
    folder.remove()
    StateFolder(topology).remove()


def test_readers_do_not_keep_a_supervisor_out(topology: Topology) -> None:
    state_folder(topology).mkdir(parents=True)
    (state_folder(topology) / "lock").touch()
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            read_state(topology)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(50):
            StateFolder(topology).forget()
    finally:
        stop.set()
        for reader in readers:
            reader.join()


def test_never_two_hold_it_while_others_remove_it(topology: Topology) -> None:
    holders: list[int] = []
    most: list[int] = []

    def take_turns(number: int) -> None:
        for _ in range(60):
            try:
                folder = StateFolder(topology)
            except (AlreadyRunning, StateError):
                continue  # the others kept it, or kept moving it, for too long
            holders.append(number)
            time.sleep(0.0002)  # let the others try
            most.append(len(holders))
            holders.remove(number)
            folder.remove()

    threads = [threading.Thread(target=take_turns, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_a_lock_on_a_file_that_was_just_removed_does_not_count(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    removed: list[bool] = []

    def flock_too_late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(True)
            (state_folder(topology) / "lock").unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    folder = StateFolder(topology)
    assert removed
    assert is_locked(topology), "the file that everybody opens is the one that is locked"
    folder.remove()


def test_a_killed_supervisor_is_not_running_and_leaves_no_lie(topology: Topology) -> None:
    script = (
        "import os, signal, sys\n"
        "from lbcore.core.topology import *\n"
        "from lbcore.shell.state import *\n"
        "t = Topology(name='test', broker=Address(), workers=(), source=sys.argv[1])\n"
        "f = StateFolder(t)\n"
        "(f.path / 'supervisor.json').write_text('{}')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).resolve().parent.parent.parent
    subprocess.run([sys.executable, "-c", script, topology.source], cwd=root, check=False)
    assert (state_folder(topology) / "supervisor.json").exists()
    assert read_state(topology) is None
    folder = StateFolder.left_behind(topology)
    assert folder is not None
    assert read_state(topology) is None, "the old state is not ours"
    folder.remove()
    assert StateFolder.left_behind(topology) is None


@pytest.mark.parametrize("in_the_way", [".lb", ".lb/test"])
def test_a_folder_that_cannot_be_made_is_one_clear_line(
    topology: Topology, tmp_path: Path, in_the_way: str
) -> None:
    (tmp_path / in_the_way).parent.mkdir(exist_ok=True)
    (tmp_path / in_the_way).write_text("a file")
    with pytest.raises(StateError, match="must be writable"):
        StateFolder(topology)


def test_clients_are_led_to_the_real_address(topology: Topology) -> None:
    assert broker_address(topology) == Address(port=8000), "not running: the YAML's"
    folder = StateFolder(topology)
    for text, address in (
        ("127.0.0.1:4711", Address(port=4711)),
        ("0.0.0.0:4711", Address(port=4711)),
        ("[::]:4711", Address(host="::1", port=4711)),
        ("unix:/run/b.sock", Address(path="/run/b.sock")),
    ):
        folder.write(some_state(text))
        assert broker_address(topology) == address
    folder.remove()


def test_a_relative_socket_starts_from_the_yaml(tmp_path: Path) -> None:
    topology = Topology(
        name="test",
        broker=Address(path="run/b.sock"),
        workers=(),
        source=str(tmp_path / "config.yaml"),
    )
    assert broker_address(topology) == Address(path=str(tmp_path / "run/b.sock"))


@given(
    st.builds(
        Address,
        host=st.sampled_from(["127.0.0.1", "::1", "localhost"]),
        port=st.integers(0, 65535),
    )
    | st.builds(Address, path=st.text(min_size=1))
)
def test_addresses_survive_being_written(address: Address) -> None:
    assert parse_address(str(address)) == address
