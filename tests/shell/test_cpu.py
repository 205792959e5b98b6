"""The CPU figures of a process: against real processes that burn a known amount of CPU time."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from lbcore.shell import process_threads
from lbcore.shell.cpu import CpuProbe
from tests.shell.puppet import Puppet

IS_LINUX = sys.platform == "linux"
#: CPU times are counted in ticks of 10 ms, for each of a few counters
TICKS_S = 0.05


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    made = Puppet()
    yield made
    made.close()


@pytest.fixture
def other_puppet() -> Iterator[Puppet]:
    made = Puppet()
    yield made
    made.close()


class Clock:
    """Monotonic seconds that go on by as much as a test says, so that no test waits for them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def later(self, seconds: float = 100.0) -> float:
        """Let time pass: by default enough for any amount of CPU."""
        self.now += seconds
        return self.now


def test_cpu_time_is_what_was_burnt_since_the_last_sample(puppet: Puppet) -> None:
    puppet.do("burn(0.2)")
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    idle = probe.sample(clock.later(10.0))
    assert idle["cpu_s"] <= TICKS_S  # what was burnt before is not counted
    assert (idle["at"], idle["wall_s"]) == (1010.0, 10.0)
    puppet.do("burn(0.2)")
    assert probe.sample(clock.later())["cpu_s"] == pytest.approx(0.2, abs=TICKS_S)
    assert probe.sample(clock.later())["cpu_s"] <= TICKS_S


def test_a_child_that_lives_is_counted(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    puppet.do("child = spawn(); tell(child, 'burn(0.2)')")
    first = probe.sample(clock.later())["cpu_s"]
    assert first >= 0.2 - TICKS_S
    puppet.do("tell(child, 'burn(0.2)')")
    assert probe.sample(clock.later())["cpu_s"] == pytest.approx(0.2, abs=TICKS_S)


def test_a_child_that_comes_and_goes_between_two_samples_is_counted_once(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    puppet.do("child = spawn(); tell(child, 'burn(0.3)'); child.communicate()")
    # besides the 0.3 s it took what Python takes to start
    assert 0.3 - TICKS_S <= probe.sample(clock.later())["cpu_s"] <= 0.6 - TICKS_S
    assert probe.sample(clock.later())["cpu_s"] <= TICKS_S


def test_what_was_counted_while_a_child_lived_is_not_counted_again_when_it_ends(
    puppet: Puppet,
) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    puppet.do("child = spawn(); tell(child, 'burn(0.4)')")
    assert probe.sample(clock.later())["cpu_s"] >= 0.4 - TICKS_S
    puppet.do("tell(child, 'burn(0.2)'); child.communicate()")
    assert probe.sample(clock.later())["cpu_s"] == pytest.approx(0.2, abs=2 * TICKS_S)
    assert probe.sample(clock.later())["cpu_s"] <= TICKS_S


def test_a_child_that_ends_without_being_waited_for_costs_nobody_else(puppet: Puppet) -> None:
    """Where SIGCHLD is ignored the kernel adds its time to nothing."""
    clock = Clock()
    puppet.do("signal.signal(signal.SIGCHLD, signal.SIG_IGN)")
    probe = CpuProbe(puppet.pid, now=clock.now)
    puppet.do("child = spawn(); tell(child, 'burn(0.3)')")
    assert probe.sample(clock.later())["cpu_s"] >= 0.3 - TICKS_S
    puppet.do("child.stdin.close(); child.stdout.read(); child.wait(); burn(0.2)")
    assert probe.sample(clock.later())["cpu_s"] == pytest.approx(0.2, abs=2 * TICKS_S)


def test_a_zombie_keeps_its_time_until_it_is_waited_for(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    puppet.do("child = spawn(); tell(child, 'burn(0.3)')")
    puppet.do("child.stdin.close(); child.stdout.read()")
    assert probe.sample(clock.later())["cpu_s"] >= 0.3 - TICKS_S
    puppet.do("child.wait()")
    assert probe.sample(clock.later())["cpu_s"] <= 2 * TICKS_S


def test_grandchildren_are_counted_also_when_their_parent_has_gone(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    puppet.do("child = spawn(); tell(child, 'grand = spawn(); tell(grand, \"burn(0.2)\")')")
    assert probe.sample(clock.later())["cpu_s"] >= 0.2 - TICKS_S
    # the grandchild is waited for by the child, and that by the puppet
    puppet.do("tell(child, 'grand.communicate()'); child.communicate()")
    assert probe.sample(clock.later())["cpu_s"] <= 0.1


def test_an_orphan_that_was_known_is_still_counted(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    puppet.do("middle, leave, go, done = orphan_to_be()")
    probe.sample(clock.later())
    puppet.do("os.write(leave, b'x'); os.waitpid(middle, 0)")
    assert probe.sample(clock.later())["cpu_s"] <= TICKS_S
    puppet.do("os.write(go, b'x'); os.read(done, 1)")
    assert probe.sample(clock.later())["cpu_s"] >= 0.2 - TICKS_S


def test_the_process_of_the_probe_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    probe = CpuProbe(os.getpid(), now=clock.now)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    report = probe.sample(clock.later())
    assert report["cpu_s"] >= 0.1 - TICKS_S
    assert report["rss_bytes"] > 1 << 20
    probe.close()


def test_cpu_time_is_never_more_than_its_cores_could_give(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, (0,), now=clock.now)
    puppet.do("burn(0.5)")
    report = probe.sample(clock.later(0.2))
    assert report["cpu_s"] == pytest.approx(0.2)
    assert report["busy_s"] <= 0.2 + 1e-9


def test_the_first_report_covers_the_time_since_the_probe_was_made(puppet: Puppet) -> None:
    probe = CpuProbe(puppet.pid)
    puppet.do("burn(0.15)")
    report = probe.sample(time.monotonic())
    assert report["wall_s"] >= 0.15
    assert report["cpu_s"] >= 0.15 - TICKS_S


def test_a_sample_that_comes_too_soon_is_the_last_one(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    assert probe.sample(clock.later(0.05))["wall_s"] == 0.0
    first = probe.sample(clock.later(10.0))
    puppet.do("burn(0.1)")
    assert probe.sample(clock.later(0.05)) is first
    second = probe.sample(clock.later(10.0))
    assert second["wall_s"] == pytest.approx(10.05)
    assert second["cpu_s"] >= 0.1 - TICKS_S


def test_a_clock_that_stands_or_goes_back_changes_nothing(puppet: Puppet) -> None:
    probe = CpuProbe(puppet.pid, now=1000.0)
    report = probe.sample(1010.0)
    assert probe.sample(1010.0) is report
    assert probe.sample(900.0) is report


def test_after_a_costly_sample_the_probe_rests(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "thread_time", lambda: float(next(ticks)))  # each sample costs 1 s
    report = probe.sample(clock.later(50.0))
    assert probe.sample(clock.later(99.0)) is report
    assert probe.sample(clock.later(2.0)) is not report


def test_a_sample_costs_less_than_one_percent_of_half_a_second(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    started = time.thread_time()
    for _ in range(50):
        probe.sample(clock.later())
    assert (time.thread_time() - started) / 50 < 0.005


def test_a_process_that_ended_leaves_its_last_report() -> None:
    made = Puppet()
    clock = Clock()
    probe = CpuProbe(made.pid, now=clock.now)
    made.do("burn(0.1)")
    report = probe.sample(clock.later())
    made.close()
    gone = [probe.gone]
    assert probe.sample(clock.later()) is report
    gone.append(probe.gone)
    assert gone == [False, True]
    assert probe.sample(clock.later()) is report


def test_a_process_that_ended_but_was_not_waited_for_raises_nothing(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    os.kill(puppet.pid, signal.SIGKILL)
    assert puppet.process.stdout is not None
    puppet.process.stdout.read()
    assert probe.sample(clock.later())["cpu_s"] >= 0.0


def test_a_process_that_never_was_is_one_error() -> None:
    made = Puppet()
    made.close()
    with pytest.raises(ProcessLookupError, match=f"no process {made.pid}"):
        CpuProbe(made.pid)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_the_cores_are_those_it_is_bound_to(puppet: Puppet) -> None:
    clock = Clock()
    cores = sorted(os.sched_getaffinity(0))
    probe = CpuProbe(puppet.pid, now=clock.now)
    assert probe.sample(clock.later())["cores"] == len(cores)
    puppet.do(f"os.sched_setaffinity(0, [{cores[0]}])")
    assert probe.sample(clock.later())["cores"] == 1
    assert CpuProbe(puppet.pid, (0, 1, 2), now=clock.now).sample(clock.later())["cores"] == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_two_on_one_core_wait_for_each_other(puppet: Puppet, other_puppet: Puppet) -> None:
    core = min(os.sched_getaffinity(0))
    for one in (puppet, other_puppet):
        one.do(f"os.sched_setaffinity(0, [{core}])")
    clock = Clock()
    probe = CpuProbe(puppet.pid, (core,), now=clock.now)
    if probe.sample(clock.later())["delay_s"] is None:
        pytest.skip("this kernel hides the waiting")
    puppet.begin("burn(0.3)")
    other_puppet.do("burn(0.3)")
    puppet.end()
    report = probe.sample(clock.later())
    assert report["delay_s"] is not None
    # while one of them burns the other waits
    assert report["delay_s"] >= 0.1
    assert report["cpu_s"] == pytest.approx(0.3, abs=TICKS_S)
    assert report["busy_s"] >= 0.5


def test_idling_waits_for_nothing(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    probe.sample(clock.later())
    delay_s = probe.sample(clock.later())["delay_s"]
    assert delay_s is None or delay_s < 0.05


def test_threads_that_come_and_go_are_followed(puppet: Puppet) -> None:
    clock = Clock()
    probe = CpuProbe(puppet.pid, now=clock.now)
    for _ in range(5):
        puppet.do(
            "ts = [threading.Thread(target=burn, args=(0.02,)) for _ in range(8)]; "
            "[t.start() for t in ts]; [t.join() for t in ts]"
        )
        report = probe.sample(clock.later())
        assert report["delay_s"] is None or report["delay_s"] >= 0.0


@pytest.mark.skipif(not IS_LINUX, reason="counts the open files of a process")
def test_no_file_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    clock = Clock()
    for _ in range(3):
        made = Puppet()
        probe = CpuProbe(made.pid, now=clock.now)
        for _ in range(3):
            made.do("child = spawn(); tell(child, 'pass')")
            probe.sample(clock.later())
            made.do("child.communicate()")
            probe.sample(clock.later())
        closing = CpuProbe(made.pid, now=clock.now)
        closing.close()
        assert closing.gone
        made.close()
        probe.sample(clock.later())
    assert len(os.listdir("/proc/self/fd")) == before


def test_children_are_found_where_the_kernel_lists_none(
    puppet: Puppet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(process_threads, "_open", lambda _path: None)
        patch.setattr(os.path, "exists", lambda _path: False)
        probe = CpuProbe(puppet.pid, now=clock.now)
        puppet.do("child = spawn(); tell(child, 'burn(0.2)')")
        report = probe.sample(clock.later())
    assert report["cpu_s"] >= 0.2 - TICKS_S
    assert report["delay_s"] is None


Times = namedtuple("Times", "user system idle iowait steal guest")


def busy(monkeypatch: pytest.MonkeyPatch, cores: tuple[int, ...], *readings: Any) -> list[float]:
    """What the probe makes of these readings of ``psutil.cpu_times``, one for each sample."""
    waiting = iter(readings)

    def read(percpu: bool = False) -> Any:
        assert percpu
        reading = next(waiting)
        if isinstance(reading, Exception):
            raise reading
        return reading

    monkeypatch.setattr(psutil, "cpu_times", read)
    clock = Clock()
    probe = CpuProbe(os.getpid(), cores, now=clock.now)
    found = [probe.sample(clock.later())["busy_s"] for _ in readings[1:]]
    probe.close()
    return found


def test_busy_is_all_but_idling_on_the_allotted_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Times(10, 5, 100, 7, 1, 2), Times(0, 0, 0, 0, 0, 0)]
    after = [Times(13, 6, 150, 9, 2, 3), Times(40, 0, 0, 0, 0, 0)]
    # on core 0: 3 user (1 of it guest), 1 system, 1 stolen
    assert busy(monkeypatch, (0,), before, after) == [5.0]
    assert busy(monkeypatch, (0, 1), before, after) == [45.0]


def test_busy_never_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    high, low = [Times(10, 0, 0, 0, 0, 0)], [Times(9, 0, 0, 0, 0, 0)]
    assert busy(monkeypatch, (0,), high, low, high) == [0.0, 1.0]


def test_busy_survives_cores_that_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = [Times(10, 0, 0, 0, 0, 0)], [Times(10, 0, 0, 0, 0, 0)] * 2
    more = [Times(14, 0, 0, 0, 0, 0), Times(12, 0, 0, 0, 0, 0)]
    assert busy(monkeypatch, (0,), one, two, more) == [0.0, 4.0]


def test_a_core_that_is_not_listed_counts_as_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Times(0, 0, 0, 0, 0, 0)] * 2
    after = [Times(4, 0, 0, 0, 0, 0), Times(2, 0, 0, 0, 0, 0)]
    assert busy(monkeypatch, (5,), before, after) == [3.0]


def test_hidden_figures_of_the_machine_blame_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert busy(monkeypatch, (0,), [], []) == [0.0]
    assert busy(monkeypatch, (0,), [], PermissionError("/proc/stat")) == [0.0]
