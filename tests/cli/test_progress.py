"""The line that moves while requests are under way."""

from __future__ import annotations

import io

import pytest

from lbcore.cli.progress import Progress, progress_line


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("done", "total", "elapsed_s"),
    [(0, 1, 0.0), (5, 10, 1.0), (10, 10, 2.0), (12, 10, 2.0), (99_999_999, 100_000_000, 250.0)],
)
def test_the_line_of_the_bar_fits(done: int, total: int, elapsed_s: float) -> None:
    assert len(progress_line("long=1,short=2,sort=10", done, total, elapsed_s)) <= 80


def test_the_bar_says_how_far_it_is() -> None:
    assert progress_line("sort", 45, 100, 0.5) == (
        "sort [=========>          ] 45% of 100  90/s  611 ms left"
    )


def test_no_bar_without_a_terminal() -> None:
    stream = io.StringIO()
    with Progress("sort", 10, lambda: 5, stream) as progress:
        assert progress._thread is None
    assert stream.getvalue() == ""


def test_the_bar_is_drawn_and_removed_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("lbcore.cli.progress._SILENCE_S", 0.0)
    monkeypatch.setattr("lbcore.cli.progress._INTERVAL_S", 0.001)
    stream = Terminal()
    with Progress("sort", 10, lambda: 5, stream) as progress:
        thread = progress._thread
        assert thread is not None
        while "50% of 10" not in stream.getvalue():
            thread.join(0.001)
    assert not thread.is_alive()
    assert stream.getvalue().endswith("\r\x1b[K")
