"""``lb compare``: a scenario on real processes, beside its simulation, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from lbcore.lab.runfile import read_run
from tests.e2e.running import LB, MARK, PATIENCE_S, survivors, wait_until

#: requests of 1 ms and 3 ms on three workers
SMALL = ("--workers", "3", "--requests", "60", "--scale", "0.001", "--work", "sleep")


class Runs:
    """Runs commands whose processes and folders can be told from all others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        #: what the command makes, it makes there
        self.temporary = folder / "tmp"
        self.temporary.mkdir()

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        mine = {key: value for key, value in os.environ.items() if not key.startswith("LB_")}
        return subprocess.Popen(
            [*LB, "compare", *arguments],
            cwd=self.folder,
            env={**mine, "NO_COLOR": "1", "TMPDIR": str(self.temporary), MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=2 * PATIENCE_S)
        assert process.returncode == code, f"{out}\n{err}"
        assert "Traceback" not in err
        self.check_nothing_is_left()
        return out, err

    def check_nothing_is_left(self) -> None:
        wait_until(lambda: not survivors(MARK, self.mark), "the end of all processes")
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def row_of(view: dict[str, Any], policy: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = [row for row in view["policies"] if row["policy"] == policy]
    (row,) = rows
    return row


def test_two_policies_beside_their_simulation(runs: Runs) -> None:
    policies = ("--policy", "least_load,round_robin")
    out, err = runs.run("--scenario", "equal", *policies, *SMALL, "--json", "--save", "a.json")
    view = json.loads(out)
    assert err == ""
    saved = json.loads((runs.folder / "a.json").read_text())
    assert saved | {"made_at": view["made_at"]} == view
    assert read_run(saved, "a.json").kind == "compare"
    names = [row["policy"] for row in view["policies"]]
    assert names == ["clairvoyant", "central queue", "least_load", "round_robin"]
    assert row_of(view, "clairvoyant")["measured"] is None
    for policy in ("least_load", "round_robin"):
        row = row_of(view, policy)
        measured = row["measured"]
        assert measured["lost"] == measured["failed"] == 0
        assert sum(view["requests"][policy].values()) == 60
        assert sum(view["shares"][policy].values()) == pytest.approx(3.0)
        assert view["quantiles"][policy][-1] == [1.0, pytest.approx(measured["p999"])]
        # nothing sleeps shorter than it was asked to
        assert measured["slowdown"] >= 1.0
        assert row["ratio"]["mean"] > 0.9
    assert list(view["requests"]["round_robin"].values()) == [20, 20, 20]


def test_the_table_names_what_is_real(runs: Runs) -> None:
    out, _ = runs.run("--scenario", "batch", "--policy", "least_load", *SMALL)
    assert "real span" in out
    assert "3 workers that sleep" in out
    assert max(map(len, out.partition("again: ")[0].splitlines())) <= 80


def test_a_slow_worker_a_stalled_one_and_one_that_fails(runs: Runs) -> None:
    (runs.folder / "mine.yaml").write_text(
        "about: everything that can be done to a worker\n"
        "workers: [{count: 2}, {count: 1, speed: 0.25}]\n"
        "load: 0.5\n"
        "retries: 50\n"
        "retry_s: 0.02\n"
        "tasks: [{name: short, service_s: 0.004}]\n"
        "changes:\n"
        "  - {workers: 1, at_s: 0.05, for_s: 0.1, stalled: true}\n"
        "  - {workers: 2, at_s: 0.1, for_s: 0.1, failing: true}\n"
    )
    options = ("--policy", "round_robin", "--requests", "150", "--scale", "1", "--json")
    out, _ = runs.run("--scenario", "mine.yaml", *options)
    measured = row_of(json.loads(out), "round_robin")["measured"]
    assert measured["lost"] == measured["failed"] == 0
    assert measured["wasted"] > 0
    # who came to the stalled worker waited for it, and the slow one takes four times as long
    assert measured["p99"] > 0.016


def test_real_neighbours_on_a_core(runs: Runs) -> None:
    (runs.folder / "mine.yaml").write_text(
        "workers: 1\n"
        "tasks: [{name: nap, service_s: 0.01, cpu: 0}]\n"
        "changes: [{workers: 1, at_s: 0.05, for_s: 0.1, every_s: 0.2, core: 0.5}]\n"
    )
    options = ("--policy", "least_load", "--requests", "40", "--scale", "1", "--json")
    out, _ = runs.run("--scenario", "mine.yaml", *options)
    view = json.loads(out)
    assert view["settings"]["work"] == "sleep"
    assert row_of(view, "least_load")["measured"]["lost"] == 0


def test_requests_that_compute(runs: Runs) -> None:
    policy = ("--policy", "least_load:cpu_weight=0")
    out, _ = runs.run("--scenario", "two_speeds", *policy, *SMALL[2:-1], "spin", "--json")
    measured = row_of(json.loads(out), "least_load:cpu_weight=0")["measured"]
    assert measured["lost"] == measured["failed"] == 0


def test_a_worker_that_joins_later(runs: Runs) -> None:
    (runs.folder / "mine.yaml").write_text(
        "workers: 3\n"
        "load: 0.8\n"
        "tasks: [{name: any, service_s: 0.01}]\n"
        "changes: [{workers: 3, at_s: 0, for_s: 0.3, absent: true}]\n"
    )
    options = ("--policy", "round_robin", "--requests", "120", "--scale", "1", "--json")
    out, _ = runs.run("--scenario", "mine.yaml", *options)
    view = json.loads(out)
    first, second, late = view["requests"]["round_robin"].values()
    assert row_of(view, "round_robin")["measured"]["lost"] == 0
    assert 0 < late < min(first, second)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scenario", "late_reports"), "real workers cannot report late or wrongly"),
        (("--scenario", "thousand"), "1,000 real workers are too many"),
        (("--scenario", "away.yaml"), "real workers may join later, but not go"),
        (("--scenario", "slots", "--work", "spin"), "the threads of one worker share a core"),
        (("--scenario", "equal", "--policy", "nobody"), "there is no policy 'nobody'"),
        (("--scenario", "equall"), "did you mean 'equal'"),
        (("--scenario", "equal", "--save", "no/where.json"), "there is no such folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(options: tuple[str, ...], words: str, runs: Runs) -> None:
    (runs.folder / "away.yaml").write_text(
        "tasks: [{name: any, service_s: 1}]\n"
        "changes: [{workers: 1, at_s: 5, for_s: 5, absent: true}]\n"
    )
    out, err = runs.run(*options, code=2)
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(number: int, code: int, runs: Runs) -> None:
    process = runs.start("--scenario", "equal", "--policy", "least_load", "--requests", "20000")
    wait_until(lambda: list(runs.temporary.glob("lb-compare-*/start")), "the first request")
    time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    runs.check_nothing_is_left()


def test_its_systems_end_with_one_that_is_killed(runs: Runs) -> None:
    process = runs.start("--scenario", "equal", "--policy", "least_load", "--requests", "20000")
    wait_until(lambda: list(runs.temporary.glob("lb-compare-*/start")), "the first request")
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    wait_until(lambda: not survivors(MARK, runs.mark), "the end of all processes")


def test_several_seeds_give_intervals(runs: Runs, tmp_path: Path) -> None:
    saved = tmp_path / "runs.json"
    arguments = ("--scenario", "equal", "--policy", "least_load,random", "--seeds", "2", *SMALL)
    out, _ = runs.run(*arguments, "--save", str(saved))
    lines = out.splitlines()
    assert "2 seeds, means with 95 % intervals" in lines
    (row,) = [line for line in lines if line.startswith("random") and out.count("±") > 4][-1:]
    assert row.count("±") == 3
    assert max(map(len, lines[:-1])) <= 80
    assert lines[-1].endswith("--seeds 2")
    found = json.loads(saved.read_text())
    assert read_run(found, "runs.json").kind == "compare"
    assert found["again"] == lines[-1].removeprefix("again: ")
    assert [run["settings"]["seed"] for run in found["runs"]] == [1, 2]
    first, second = found["ratios"]
    assert first["policy"] == "least_load"
    assert first["tail_to_first"] == {"mean": 1.0, "half": 0.0}
    measured = [run["policies"][-1]["measured"]["p99"] for run in found["runs"]]
    simulated = [run["policies"][-1]["p99"] for run in found["runs"]]
    expected = sum(a / b for a, b in zip(measured, simulated, strict=True)) / 2
    assert second["tail"]["mean"] == pytest.approx(expected)
