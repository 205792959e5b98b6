"""The command ``lb``: finding commands, and one clear line for everything that goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lbcore import __version__
from lbcore.cli.main import COMMANDS, Entry, run

RUN_PROBE = str(Path(__file__).with_name("run_probe.py"))


@pytest.fixture(autouse=True)
def _probe_command(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("tests.cli.probe_commands:probe", "Fail in some way.", owns_signals=True)
    monkeypatch.setitem(COMMANDS, "probe", entry)


def run_probe(way: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, RUN_PROBE, "probe", way], capture_output=True, text=True, timeout=30
    )


def test_help_lists_every_command_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, entry in COMMANDS.items():
        assert f"  {name:<12}{entry.help}".rstrip() in lines


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_imports_no_command_and_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from lbcore.cli.main import run\n"
        f"run({arguments!r})\n"
        "heavy = {'rich', 'loguru', 'psutil', 'msgspec', 'yaml', 'uvloop', 'asyncio',\n"
        "         'multiprocessing', 'lbcore.cli.send', 'lbcore.shell'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert result.stderr.strip() == "[]"


def test_no_argument_shows_the_help_and_is_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([]) == 2
    assert "Commands:" in capsys.readouterr().err


def test_version_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"lb {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sned"], "there is no command 'sned'; did you mean 'send'?"),
        (["statsu"], "did you mean 'status'?"),
        (["xyzzy"], "there is no command 'xyzzy'; there are: up, down, status"),
        (["send", "--tsk", "sort"], "there is no option '--tsk'; did you mean '--task'?"),
        (["--hlep"], "there is no option '--hlep'; did you mean '--help'?"),
        (["send", "--wibble"], "there is no option '--wibble'"),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'"),
        (["version", "extra"], "extra"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_nearest_right_word(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, *rest = captured.err.splitlines()
    assert first.startswith("lb: ")
    assert expected in first
    assert len(rest) == 1
    assert "--help`" in rest[0]


def test_a_command_may_return_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "seven"]) == 7
    assert run(["probe", "none"]) == 0


@pytest.mark.parametrize(
    ("way", "code", "complaint"),
    [
        (
            "config",
            2,
            "lb: config.yaml:3: broker.prot: unknown key\nconfig.yaml:5: another\n",
        ),
        ("absent", 3, "lb: nobody there\n"),
        ("interrupt", 130, ""),
        ("terminate", 143, ""),
    ],
)
def test_an_error_on_purpose_has_no_traceback(
    way: str, code: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["probe", way]) == code
    captured = capsys.readouterr()
    assert captured.err == complaint
    assert captured.out == ""


def test_a_bug_shows_its_traceback_and_the_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["probe", "bug"]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: ours" in error
    assert f"a bug in lb {__version__} (Python {sys.version.split()[0]}" in error.splitlines()[-1]


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, RUN_PROBE, "probe", "flood"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 141


def test_a_full_disk_is_one_line() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, RUN_PROBE, "probe", "none"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    assert result.returncode == 1
    assert result.stderr == "lb: cannot write: No space left on device\n"


def test_closed_streams_are_no_error() -> None:
    command = f"{sys.executable} {RUN_PROBE} probe none >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], timeout=30).returncode == 0


def test_a_terminal_without_unicode_gets_escapes_instead_of_a_traceback() -> None:
    result = subprocess.run(
        [sys.executable, RUN_PROBE, "good", "--", "status", "--port", "8000"],
        capture_output=True,
        timeout=30,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert result.stderr == b""
    assert result.returncode == 0
    assert b"worker-1" in result.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_command_with_their_code_and_no_traceback(
    number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", RUN_PROBE, "probe", "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"waiting\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (code, b"")


def test_a_command_that_forks_keeps_the_default_for_sigterm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(["probe", "none"])
    assert signal.getsignal(signal.SIGTERM) is before
    assert COMMANDS["up"].owns_signals
