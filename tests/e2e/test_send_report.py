"""A run of ``lb send`` on a real system becomes a page."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.running import RunningSystem


def test_a_run_of_send_is_kept_and_drawn(shared: RunningSystem, tmp_path: Path) -> None:
    kept, page = tmp_path / "send.json", tmp_path / "send.html"
    arguments = ["send", "--task", "noop", "--n", "300"]
    done = shared.cli(*arguments, "--save", str(kept), "--report", str(page))
    assert f"saved: {kept}" in done.stderr
    run = json.loads(kept.read_text())
    assert (run["lb_run"], run["kind"]) == (1, "send")
    (counts,) = run["requests"].values()
    assert sum(counts.values()) == 300
    (row,) = run["policies"]
    assert 0 < row["p50"] <= row["p99"]
    (series,) = run["series"].values()
    names = {worker.name for worker in shared.state().workers}
    assert set(series["workers"]) == names
    assert all(
        len(values) == len(series["moments"])
        for worker in series["workers"].values()
        for values in worker.values()
    )
    text = page.read_text()
    assert "noop: 300 requests sent" in text
    assert text.count("<svg") >= 4


def test_what_cannot_be_written_is_one_clear_line(shared: RunningSystem, tmp_path: Path) -> None:
    done = shared.cli(
        "send", "--task", "noop", "--n", "1", "--save", str(tmp_path / "no" / "x"), code=2
    )
    assert "cannot write" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
