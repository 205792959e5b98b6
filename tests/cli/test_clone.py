"""``lb bench`` and ``lb test``, with and without a clone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lbcore.cli import clone
from lbcore.cli.main import run


@pytest.mark.parametrize("name", ["bench", "test"])
def test_without_a_clone_one_line_says_where_it_runs(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(clone, "clone_folder", lambda: tmp_path)
    assert run([name, "--anything", "-k", "x"]) == 2
    expected = f"lb: `{name}` needs the files of a clone: run `python lb.py {name}` in one\n"
    assert capsys.readouterr().err == expected
    assert run([name, "--help"]) == 0
    assert f"python lb.py {name}" in capsys.readouterr().out


def test_bench_gets_every_argument_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "bench" / "run.py"
    script.parent.mkdir()
    script.write_text("")
    started: list[list[str]] = []
    monkeypatch.setattr(clone, "clone_folder", lambda: tmp_path)
    monkeypatch.setattr("lbcore.cli.clone.os.execv", lambda program, words: started.append(words))
    run(["bench", "--only", "lb", "--help", "-x", "--", "y"])
    assert started == [[sys.executable, str(script), "--only", "lb", "--help", "-x", "--", "y"]]
