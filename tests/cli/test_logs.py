"""``lb logs``: what is shown, in which order, and its one-line refusals."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from lbcore.cli.logs import logs as logs_command
from lbcore.cli.main import run
from lbcore.shell.log_files import rotated_paths
from tests.cli.log_system import NOW, SEVEN_42, System, command


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


@pytest.fixture
def show(
    system: System, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str], str]]:
    """Run the command in this process: exit code, lines of stdout, stderr."""

    def show(*arguments: str) -> tuple[int, list[str], str]:
        code = run(system.arguments(*arguments))
        output = capsys.readouterr()
        return code, output.out.splitlines(), output.err

    return show


Show = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def filled(system: System) -> System:
    for number in range(15):
        system.log("supervisor", f"supervisor {number}", at_s=3 * number)
        system.log("broker", f"broker {number}", at_s=3 * number + 1)
        system.log("worker-1", f"worker {number}", at_s=3 * number + 2, request=SEVEN_42 + number)
    return system


def last_words(rows: list[str]) -> list[str]:
    return [" ".join(row.split()[-2:]) for row in rows]


# what is shown


@pytest.mark.usefixtures("filled")
def test_the_last_twenty_lines_by_time(show: Show) -> None:
    code, rows, _ = show()
    expected = [f"{name} {n}" for n in range(15) for name in ("supervisor", "broker", "worker")]
    assert code == 0
    assert last_words(rows) == expected[-20:]


@pytest.mark.usefixtures("filled")
def test_as_many_as_asked_for_over_rotated_files(system: System, show: Show) -> None:
    assert rotated_paths(system.folder / "worker-1.log")
    for count, expected in (("0", 0), ("1", 1), ("33", 33), ("all", 45), ("9999", 45)):
        code, rows, _ = show("-n", count)
        assert (code, len(rows)) == (0, expected)


@pytest.mark.usefixtures("filled")
def test_only_the_named_processes(show: Show) -> None:
    _, rows, _ = show("broker", "worker-1", "-n", "4")
    assert last_words(rows) == ["broker 13", "worker 13", "broker 14", "worker 14"]


def test_a_line_as_people_read_it(system: System, show: Show) -> None:
    system.log("worker-1", "sorting", request=SEVEN_42, level="OUT")
    system.log("broker", "lost it", at_s=1.5, level="WARNING", exception="Traceback\n  boom")
    date = f"{NOW:%Y-%m-%d}"
    assert show()[1] == [
        f"{date} 12:00:00.000 worker-1   | OUT   [7:42] sorting",
        f"{date} 12:00:01.500 broker     | WARNING lost it",
        "                        broker     |     Traceback",
        "                        broker     |       boom",
    ]


def test_json_is_one_object_a_record_in_both_formats(system: System, show: Show) -> None:
    system.log("worker-1", "from text", request=SEVEN_42, exception="a\nb")
    system.log("broker", "from json\x1b[2J", at_s=1, style="json")
    code, rows, _ = show("--json")
    assert code == 0
    first, second = map(json.loads, rows)
    assert list(first) == ["ts", "level", "proc", "pid", "request", "msg", "exception"]
    assert (first["msg"], first["request"], first["exception"]) == ("from text", "7:42", "a\nb")
    assert datetime.fromisoformat(first["ts"]) == NOW
    assert (second["msg"], second["proc"], second["request"]) == (
        "from json\x1b[2J",
        "broker",
        None,
    )


def test_raw_is_what_the_files_hold(system: System, show: Show) -> None:
    system.log("worker-1", "text", exception="a\nb")
    system.log("broker", "json", at_s=1, style="json")
    _, rows, _ = show("--raw")
    text = (system.folder / "worker-1.log").read_text()
    assert rows == (text + (system.folder / "broker.log").read_text()).splitlines()


def test_nothing_in_a_file_reaches_the_terminal_unescaped(system: System, show: Show) -> None:
    system.log("broker", "\x1b[2J\u202e", style="json")
    with (system.folder / "broker.log").open("a") as file:
        file.write("foreign \x1b[2J\n")
    code, rows, _ = show()
    assert code == 0
    assert rows[0].endswith(r"INFO  \x1b[2J\u202e")
    assert rows[1].endswith(r"foreign \x1b[2J")


def test_all_lines_of_a_request(filled: System, show: Show) -> None:
    filled.log("broker", "chosen", request=SEVEN_42 + 3, at_s=99)
    for spelling in ("7:45", "[7:45]"):
        _, rows, _ = show("--request", spelling)
        assert last_words(rows) == ["worker 3", "[7:45] chosen"]
    _, rows, _ = show("--request", "7:45", "-n", "1")
    assert last_words(rows) == ["[7:45] chosen"]


def test_lines_of_a_level_and_above(system: System, show: Show) -> None:
    for level in ("DEBUG", "INFO", "OUT", "WARNING", "ERR", "ERROR", "RAW", "CRITICAL"):
        system.log("broker", f"a {level}", level=level)
    assert last_words(show("--level", "warning")[1]) == [
        f"a {level}" for level in ("WARNING", "ERR", "ERROR", "RAW", "CRITICAL")
    ]
    assert len(show("--level", "INFO")[1]) == 7


def test_a_filter_that_nothing_passes_says_so(filled: System, show: Show) -> None:
    assert show("--request", "1:1") == (0, [], "lb: no line matches\n")


def test_the_folder_comes_from_the_topology(system: System, show: Show) -> None:
    system.log("broker", "hello")
    system.folder.rename(system.folder.with_name("elsewhere"))
    assert len(show("--set", "logs.folder=elsewhere")[1]) == 1
    assert show()[0] == 3


# refusals


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("worker-3", "did you mean 'worker-"),
        ("brokr", "did you mean 'broker'"),
        ("x" * 9, "known:"),
    ],
)
def test_an_unknown_name_is_one_line(system: System, show: Show, name: str, hint: str) -> None:
    system.log("worker-7", "still known by its file")
    code, rows, errors = show(name)
    assert (code, rows) == (2, [])
    assert errors.startswith(f"lb: there is no process {name!r}; ")
    assert hint in errors
    assert "known: supervisor, broker, worker-1, worker-2, worker-7" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["-f"], ["worker-1"], ["--json"]])
def test_no_logs_yet_is_one_line_that_says_what_starts_them(
    show: Show, arguments: list[str]
) -> None:
    code, rows, errors = show(*arguments)
    assert (code, rows) == (3, [])
    assert errors.startswith("lb: no logs in ")
    assert " up -c " in errors
    assert errors.count("\n") == 1


def test_a_worker_without_a_log_yet(system: System, show: Show) -> None:
    system.log("broker", "hello")
    code, rows, errors = show("worker-2")
    assert (code, rows) == (3, [])
    assert errors.startswith("lb: worker-2 has no log yet; ")


@pytest.mark.parametrize(
    "arguments",
    [["-n", "x"], ["-n", "-1"], ["-n", "1.5"], ["--level", "LOUD"], ["--request", "7"],
     ["--request", "0:0"], ["--raw", "--json"], ["--set", "broker.prot=1"], ["--set", "x"]],
)  # fmt: skip
def test_wrong_options_exit_with_2(filled: System, show: Show, arguments: list[str]) -> None:
    code, rows, errors = show(*arguments)
    assert (code, rows) == (2, [])
    assert errors.startswith("lb: ")
    assert "Traceback" not in errors


def test_help_has_examples_and_fits_80_columns() -> None:
    result = CliRunner().invoke(logs_command, ["--help"], terminal_width=80)
    assert result.exit_code == 0
    assert "lb logs -f" in result.output
    assert max(map(len, result.output.splitlines())) <= 80


def test_names_complete(system: System) -> None:
    system.log("worker-7", "known by its file")
    environment = {
        "_LB_COMPLETE": "bash_complete",
        "COMP_WORDS": f"lb logs -c {system.config} worker-",
        "COMP_CWORD": "4",
    }
    result = subprocess.run(
        command(), env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )
    assert [row.split(",")[-1] for row in result.stdout.split()] == [
        "worker-1",
        "worker-2",
        "worker-7",
    ]
