"""Prints with their request, uncaught exceptions, crashes: what a process says without a logger."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.topology import LogsConfig
from lbcore.shell.log_capture import PARTIAL_LINES_MAX, LineWriter
from lbcore.shell.log_lines import LINE_CHARACTERS_MAX
from lbcore.shell.logs import append_raw, request_context, request_id, setup_logging
from tests.shell.log_helpers import (
    SEVEN_42,
    SIX_42,
    below,
    in_one_folder,
    logging_restored,
    prints,
    read,
    run_script,
)


@pytest.fixture(autouse=True)
def _no_logging_left() -> Iterator[None]:
    with logging_restored():
        yield


# prints


@pytest.fixture
def writer(tmp_path: Path) -> LineWriter:
    return LineWriter(setup_logging(LogsConfig(), tmp_path, "worker-1"), "OUT", 1)


def test_a_line_is_logged_when_it_is_complete(tmp_path: Path, writer: LineWriter) -> None:
    assert writer.write("one\ntw") == 6
    assert [line.message for line in read(tmp_path)] == ["one"]
    writer.flush()
    writer.write("o\n\n")
    assert prints(tmp_path) == [("OUT", 0, "one"), ("OUT", 0, "two"), ("OUT", 0, "")]


def test_prints_carry_the_request(tmp_path: Path, writer: LineWriter) -> None:
    with request_context(SEVEN_42):
        print("inside", file=writer)
    print("outside", file=writer)
    assert prints(tmp_path) == [("OUT", SEVEN_42, "inside"), ("OUT", 0, "outside")]


def test_contexts_nest_and_end(tmp_path: Path) -> None:
    with request_context(SIX_42):
        with request_context(SEVEN_42):
            assert request_id.get() == SEVEN_42
        assert request_id.get() == SIX_42
    assert request_id.get() == 0


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["a\r\nb\r\n"], ["a", "b"]),
        (["a\r", "\nb\n"], ["a", "b"]),
        (["\r 10%", "\r 20%", "\r 30%\n"], [" 10%", " 20%", " 30%"]),
        (["\r\n"], [""]),
        (["a\r\r\nb\n"], ["a", "", "b"]),
    ],
)
def test_every_kind_of_line_end(
    tmp_path: Path, writer: LineWriter, pieces: list[str], expected: list[str]
) -> None:
    for piece in pieces:
        writer.write(piece)
    assert [line.message for line in read(tmp_path)] == expected


@given(st.lists(st.text(alphabet="ab\r\n", max_size=8), max_size=8))
@in_one_folder
def test_cutting_writes_differently_changes_nothing(tmp_path: Path, pieces: list[str]) -> None:
    found = []
    for variant in (pieces, ["".join(pieces)], list("".join(pieces))):
        (tmp_path / "worker-1.log").unlink(missing_ok=True)
        writer = LineWriter(setup_logging(LogsConfig(), tmp_path, "worker-1"), "OUT", 1)
        for piece in variant:
            writer.write(piece)
        writer.finish_lines()
        found.append([line.message for line in read(tmp_path)])
    assert found[0] == found[1] == found[2]
    assert "".join(found[0]) == "".join(pieces).replace("\r", "").replace("\n", "")


def test_threads_do_not_mix_within_a_line(tmp_path: Path, writer: LineWriter) -> None:
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        with request_context(number):
            barrier.wait()
            for _ in range(50):
                print(number, number, number, file=writer)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = read(tmp_path)
    assert len(lines) == 200
    assert all(line.message == f"{line.request} " * 2 + f"{line.request}" for line in lines)


def test_a_thread_of_the_only_request_prints_for_it(tmp_path: Path, writer: LineWriter) -> None:
    def print_in_thread() -> None:
        thread = threading.Thread(target=lambda: print("helper", file=writer))
        thread.start()
        thread.join()

    with request_context(SEVEN_42):
        print_in_thread()
        with request_context(SIX_42):
            print_in_thread()  # now nobody can say whose it is
    print_in_thread()
    assert [line.request for line in read(tmp_path)] == [SEVEN_42, 0, 0]


def test_the_process_may_know_better_which_request_runs(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        capture.restore()
        running = [7 << 32 | 42]
        capture_output(logger, lambda: running[0])
        def print_in_thread():
            thread = threading.Thread(target=print, args=("helper",))
            thread.start()
            thread.join()
        print_in_thread()
        running[0] = 0
        print_in_thread()
        """,
    )
    assert [line.request for line in read(tmp_path)] == [SEVEN_42, 0]


def test_unfinished_lines_are_bounded(tmp_path: Path, writer: LineWriter) -> None:
    writer.write("x" * (LINE_CHARACTERS_MAX + 1))
    assert not writer.has_partial
    for number in range(PARTIAL_LINES_MAX + 1):
        with request_context(number + 1):
            writer.write("y")
    assert len(read(tmp_path)) == 1 + PARTIAL_LINES_MAX
    assert writer.has_partial


def test_it_behaves_like_a_text_stream(tmp_path: Path, writer: LineWriter) -> None:
    assert writer.writable()
    assert not writer.isatty()
    assert not writer.readable()
    assert (writer.encoding, writer.errors, writer.name) == (
        "utf-8",
        "backslashreplace",
        "<stdout>",
    )
    assert writer.fileno() == 1
    writer.reconfigure(line_buffering=False)
    writer.writelines(["a\n", "b\n"])
    writer.close()
    writer.buffer.write("ä\xff\n".encode("latin-1"))
    writer.buffer.write("ö".encode()[:1])
    writer.buffer.write("ö\n".encode()[1:])
    writer.buffer.flush()
    with pytest.raises(TypeError, match="must be str, not bytes"):
        writer.write(b"x")  # type: ignore[arg-type]
    assert [line.message for line in read(tmp_path)] == ["a", "b", r"\xe4\xff", "ö"]


def test_a_print_cannot_forge_a_line(tmp_path: Path, writer: LineWriter) -> None:
    forged = "2026-11-23 10:00:00.123 INFO  broker [7:42] forged"
    print(f"a\x85{forged}\u2028{forged}\x1b[2K\r{forged}", file=writer)
    print(forged, file=writer)
    assert {(line.process, line.level) for line in read(tmp_path)} == {("worker-1", "OUT")}


# a whole process


def test_prints_of_a_process_land_in_its_log_at_any_level(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        with request_context(7 << 32 | 42):
            print("hello", 5)
            print("warned", file=sys.stderr)
            print("no end", end="")
            logger.info("below the level")
        print("next")
        print("at exit", end="")
        """,
    )
    assert prints(tmp_path) == [
        ("OUT", SEVEN_42, "hello 5"),
        ("ERR", SEVEN_42, "warned"),
        ("OUT", SEVEN_42, "no end"),
        ("OUT", 0, "next"),
        ("OUT", 0, "at exit"),
    ]
    assert (result.stdout, result.stderr) == ("", "")


def test_an_uncaught_exception_lands_in_the_log(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        request_id.set(7 << 32 | 42)
        raise KeyError("two\\nlines")
        """,
        expect=1,
    )
    (line,) = read(tmp_path)
    assert (line.level, line.request, line.message) == ("CRITICAL", SEVEN_42, "uncaught KeyError")
    assert below(tmp_path).endswith(r"KeyError: 'two\nlines'")
    assert result.stderr == ""


def test_exceptions_of_threads_and_destructors_land_in_the_log(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        class Awkward:
            def __del__(self):
                raise KeyError("in a destructor")
            def __repr__(self):
                raise RuntimeError
        Awkward()
        def fail():
            raise ValueError("in a thread")
        with request_context(7 << 32 | 42):
            for target in (fail, sys.exit):
                thread = threading.Thread(target=target, name="helper\\n")
                thread.start()
                thread.join()
        """,
    )
    destructor, thread = read(tmp_path)
    assert "__del__" in destructor.message
    assert thread.message == r"uncaught ValueError in thread helper\n"
    assert (thread.level, thread.request) == ("ERROR", SEVEN_42)
    assert "KeyError: 'in a destructor'" in below(tmp_path)
    assert "ValueError: in a thread" in below(tmp_path)


def test_a_crash_dumps_its_stack_to_the_raw_stderr(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        def crash_here():
            os.kill(os.getpid(), 11)
        crash_here()
        """,
        expect=-signal.SIGSEGV,
    )
    assert "Segmentation fault" in result.stderr
    assert "in crash_here" in result.stderr
    append_raw(tmp_path / "worker-1.log", "worker-1", result.stderr, SEVEN_42)
    assert {(line.level, line.request) for line in read(tmp_path)} == {("RAW", SEVEN_42)}
    assert any("in crash_here" in line.message for line in read(tmp_path))


def test_a_signal_shows_where_every_thread_is(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import signal
        def busy_here():
            os.kill(os.getpid(), signal.SIGUSR2)
        busy_here()
        """,
    )
    assert "in busy_here" in result.stderr


def test_a_print_within_a_sink_does_not_recurse(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        logger.add(lambda message: print("from the sink"), format="{message}", level="WARNING")
        print("hello")
        logger.warning("direct")
        """,
    )
    found = [message for _, _, message in prints(tmp_path)]
    assert [one for one in found if one in ("hello", "direct")] == ["hello", "direct"]
    assert len(found) < 10
    assert len(result.stderr.splitlines()) < 100


def test_a_full_disk_neither_stops_nor_floods_a_process(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("only Linux has a device that is always full")
    result = run_script(
        tmp_path,
        """
        (folder / "worker-1.log").unlink()
        (folder / "worker-1.log").symlink_to("/dev/full")
        for number in range(100):
            print("lost", number)
            logger.error("lost {}", number)
        (folder / "worker-1.log").unlink()
        print("back")
        """,
    )
    assert len(result.stderr.splitlines()) == 1
    assert "No space left on device" in result.stderr
    assert [message for _, _, message in prints(tmp_path)] == [
        "records lost here: 200, because: No space left on device",
        "back",
    ]


def test_what_a_closed_stream_held_is_no_reason_to_fail(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        capture.restore()
        sys.stdout = None
        sys.stderr.close()
        with capture_output(logger).stdout as stream:
            print("hello")
        """,
    )
    assert prints(tmp_path) == [("OUT", 0, "hello")]
