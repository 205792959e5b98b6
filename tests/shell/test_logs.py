"""Setting up the logging of one process: its file, format, levels, and clear refusals."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given

from lbcore.core.errors import LBError
from lbcore.core.topology import LogsConfig
from lbcore.shell.log_lines import shorten
from lbcore.shell.logs import LogSetupError, request_context, setup_logging
from tests.shell.log_helpers import (
    SEVEN_42,
    SIX_42,
    anything,
    below,
    in_one_folder,
    logging_restored,
    read,
    run_script,
)


@pytest.fixture(autouse=True)
def _no_logging_left() -> Iterator[None]:
    with logging_restored():
        yield


def test_a_message_is_one_line_in_the_process_own_file(tmp_path: Path) -> None:
    setup_logging(LogsConfig(), tmp_path / "logs", "broker").info("hello {}", "you")
    (line,) = read(tmp_path / "logs", "broker")
    assert (line.level, line.process, line.request, line.message) == (
        "INFO",
        "broker",
        0,
        "hello you",
    )
    assert sorted(os.listdir(tmp_path / "logs")) == ["broker.log"]


def test_json_on_request(tmp_path: Path) -> None:
    log = setup_logging(LogsConfig(format="json"), tmp_path, "broker")
    with request_context(SEVEN_42):
        log.warning("a\nb")
    record = json.loads((tmp_path / "broker.log").read_text())
    assert list(record) == ["ts", "level", "proc", "pid", "request", "msg"]
    assert (record["pid"], record["request"], record["msg"]) == (os.getpid(), "7:42", "a\nb")


def test_the_level_holds_for_messages(tmp_path: Path) -> None:
    log = setup_logging(LogsConfig(level="warning"), tmp_path, "broker")
    log.info("dropped")
    log.warning("kept")
    assert [line.message for line in read(tmp_path, "broker")] == ["kept"]


def test_setting_up_again_moves_to_the_new_file(tmp_path: Path) -> None:
    setup_logging(LogsConfig(), tmp_path, "supervisor").info("one")
    setup_logging(LogsConfig(), tmp_path, "worker-1").info("two")
    assert [line.message for line in read(tmp_path, "supervisor")] == ["one"]
    assert [line.message for line in read(tmp_path, "worker-1")] == ["two"]


def test_rotation_and_retention_come_from_the_topology(tmp_path: Path) -> None:
    log = setup_logging(LogsConfig(rotation="1 KB", retention="2"), tmp_path, "worker-1")
    other = tmp_path / "worker-10.2026-11-23_10-00-00_000000.log"
    other.touch()
    for number in range(100):
        log.info("number {}", number)
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 4
    assert {"worker-1.log", other.name} < set(names)
    assert read(tmp_path)[-1].message == "number 99"


@given(anything)
@in_one_folder
def test_any_message_is_one_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "worker-1.log"
    path.unlink(missing_ok=True)
    log = setup_logging(LogsConfig(), tmp_path, "worker-1")
    log.info(text)
    log.info("{}", text)
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    assert [line.message for line in read(tmp_path)] == [shorten(text), shorten(text), "failed"]


@given(anything)
@in_one_folder
def test_any_message_comes_back_exactly_from_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "worker-1.log"
    path.unlink(missing_ok=True)
    setup_logging(LogsConfig(format="json"), tmp_path, "worker-1").info(text)
    (line,) = read(tmp_path)
    assert line.message == text


def test_a_message_may_name_its_request_and_bring_details(tmp_path: Path) -> None:
    log = setup_logging(LogsConfig(), tmp_path, "broker")
    with request_context(SIX_42):
        log.bind(request=SEVEN_42, detail="row 1\nrow 2").error("lost")
        log.error("here")
    assert [line.request for line in read(tmp_path, "broker")] == [SEVEN_42, SIX_42]
    assert below(tmp_path, "broker") == "row 1\nrow 2"


def test_exceptions_that_cannot_be_shown_do_not_stop_anything(tmp_path: Path) -> None:
    class Awkward(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        __repr__ = __str__

    log = setup_logging(LogsConfig(), tmp_path, "broker")
    try:
        raise Awkward
    except Awkward:
        log.exception("failed")
    log.info("after")
    assert [line.message for line in read(tmp_path, "broker")] == ["failed", "after"]
    assert "<exception str() failed>" in below(tmp_path, "broker")


def test_values_of_variables_stay_out_of_tracebacks(tmp_path: Path) -> None:
    def fail(password: str) -> None:
        raise ValueError(f"length {len(password)}")

    log = setup_logging(LogsConfig(), tmp_path, "broker")
    try:
        fail("hunter2")
    except ValueError:
        log.exception("failed")
    text = (tmp_path / "broker.log").read_text()
    assert "ValueError: length 7" in text
    assert "'hunter2'" not in text


def test_the_standard_library_logs_here_too(tmp_path: Path) -> None:
    logging.getLogger().handlers.clear()  # pytest's own would raise for wrong arguments
    setup_logging(LogsConfig(), tmp_path, "worker-1")
    setup_logging(LogsConfig(), tmp_path, "worker-1")
    log = logging.getLogger("somebody.else")
    log.debug("dropped")
    log.info("count %d", 5)
    log.log(35, "between")
    log.error("arguments %d", "wrong")
    found = [(line.level, line.message) for line in read(tmp_path)]
    assert found[:2] == [
        ("INFO", "somebody.else: count 5"),
        ("WARNING", "somebody.else: between"),
    ]
    assert len(found) == 3
    assert "do not fit" in found[2][1]


def test_the_console_is_short_and_as_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open(2, "w", closefd=False) as stream:
        monkeypatch.setattr(sys, "__stderr__", stream)
        log = setup_logging(LogsConfig(), tmp_path, "supervisor", console=True)
        log.debug("dropped")
        log.bind(detail="a\n\x1b[2J").warning("careful\nforged")
    first, *rows = capfd.readouterr().err.splitlines()
    assert first[8:] == r" supervisor | careful\nforged"
    assert [row[8:] for row in rows] == [" supervisor |     a", r" supervisor |     \x1b[2J"]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"level": "LOUD"}, "logs.level is 'LOUD'"),
        ({"format": "xml"}, "logs.format is 'xml'"),
        ({"rotation": "sometimes"}, "'sometimes'"),
        ({"retention": "some"}, "'some'"),
    ],
)
def test_unusable_settings_are_one_clear_error(
    tmp_path: Path, settings_: dict[str, str], message: str
) -> None:
    with pytest.raises(LogSetupError, match=message) as caught:
        setup_logging(LogsConfig(**settings_), tmp_path, "broker")
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "logs" / "broker.log").mkdir(parents=True)
    for folder, reason in (
        (tmp_path / "file", "not a folder"),
        (tmp_path / "missing" / "logs", "no folder .*missing"),
        (tmp_path / "logs", r"broker.log: Is a directory"),
        (Path("/proc/logs"), "cannot write logs to /proc/logs"),
    ):
        with pytest.raises(LogSetupError, match=reason) as caught:
            setup_logging(LogsConfig(), folder, "broker")
        assert isinstance(caught.value, LBError)
        assert "logs.folder" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_one_who_is_patient_writes_as_soon_as_it_is_possible(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    log = setup_logging(LogsConfig(), tmp_path / "logs", "broker", patient=True)
    log.info("lost")
    (tmp_path / "logs").unlink()
    log.info("written")
    messages = [line.message for line in read(tmp_path / "logs", "broker")]
    assert messages == ["records lost here: 1, because: Not a directory", "written"]


def test_a_failed_set_up_keeps_the_logging_of_before(tmp_path: Path) -> None:
    log = setup_logging(LogsConfig(), tmp_path, "broker")
    with pytest.raises(LogSetupError):
        setup_logging(LogsConfig(), tmp_path / "missing" / "logs", "broker")
    log.info("still here")
    assert [line.message for line in read(tmp_path, "broker")] == ["still here"]


def test_each_forked_child_has_its_own_file(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        import multiprocessing
        capture.restore()
        logger = setup_logging(LogsConfig(), folder, "supervisor")
        logger.info("before")
        def child(name):
            log = setup_logging(LogsConfig(), folder, name)
            capture_output(log)
            log.info("started")
            print("printed")
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=child, args=(f"child-{n}",)) for n in range(3)]
        for one in children:
            one.start()
        for one in children:
            one.join()
            assert one.exitcode == 0
        logger.info("after")
        """,
    )
    assert [line.message for line in read(tmp_path, "supervisor")] == ["before", "after"]
    for number in range(3):
        lines = read(tmp_path, f"child-{number}")
        assert [line.message for line in lines] == ["started", "printed"]


def test_forking_while_threads_log_locks_nothing_up(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
        stop = threading.Event()
        def chatter():
            while not stop.is_set():
                print("chatter")
        threads = [threading.Thread(target=chatter) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                log = setup_logging(LogsConfig(), folder, "child")
                log.info("child")
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        """,
    )
