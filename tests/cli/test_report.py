"""``lb simulate --scenario`` and ``lb report`` as commands: tables, files, pages, paper."""

from __future__ import annotations

import json
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import lbcore
from tests.cli.log_system import command

ROOT = Path(lbcore.__file__).resolve().parent.parent
POLICIES = "least_load,round_robin,random"
SIMULATE = ["simulate", "--scenario", "two_speeds", "--policy", POLICIES, "--requests", "400"]
SIMULATE += ["--jobs", "1"]


def run(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run(*SIMULATE, "--seeds", "2", "--save", "run.json", cwd=folder)
    return folder / "run.json"


class Page(HTMLParser):
    """What a page holds: its headings, its pictures, the cells of its table, and its addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.pictures: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        found = dict(attrs)
        if tag == "svg":
            self.pictures.append(found.get("aria-label") or "")
        if "id" in found:
            self.ids.append(found["id"] or "")
        for key in ("src", "href", "xlink:href"):
            if found.get(key):
                self.addresses.append(found[key] or "")

    def handle_data(self, data: str) -> None:
        if self._inside in ("h1", "h2"):
            self.headings.append(data)
        if self._inside == "td":
            self.cells.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    out = run(*SIMULATE, cwd=tmp_path).stdout
    assert all(len(line) <= 80 for line in out.splitlines() if not line.startswith("again"))
    assert "…" not in out
    for name in ("clairvoyant", "central queue", *POLICIES.split(",")):
        assert re.search(rf"^{name} +\d", out, re.MULTILINE)
    again = re.search(r"^again: python \S+ (.*)$", out, re.MULTILINE) or re.search(
        r"^again: \S+ (.*)$", out, re.MULTILINE
    )
    assert again is not None
    assert run(*again[1].split(), cwd=tmp_path).stdout == out


def test_json_has_the_keys_that_are_promised(tmp_path: Path) -> None:
    found = json.loads(run(*SIMULATE, "--json", cwd=tmp_path).stdout)
    assert (found["scenario"], found["seed"]) == ("two_speeds", 1)
    rows = {row["policy"]: row for row in found["policies"]}
    assert list(rows) == ["clairvoyant", "central queue", *POLICIES.split(",")]
    for row in rows.values():
        assert {"mean", "p50", "p99", "p999", "makespan", "slowdown"} <= row.keys()
        assert 0 < row["p50"] <= row["p99"] <= row["p999"]


def test_the_scenarios_are_listed(tmp_path: Path) -> None:
    out = run("simulate", "--scenario", "list", cwd=tmp_path).stdout
    assert "noisy_neighbour" in out
    assert all(len(line) <= 80 for line in out.splitlines()[:-1])


def test_a_copy_of_a_scenario_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "about: mine\nworkers: 2\ntasks:\n- {name: any, service_s: 0.5, shape: exponential}\n"
    )
    arguments = ["simulate", "--scenario", "mine.yaml", "--policy", "random", "--requests", "200"]
    assert "mine: mine" in run(*arguments, cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenario", "eqal"], "there is no scenario 'eqal'; did you mean 'equal'?"),
        (["--scenario", "none.yaml"], "cannot read scenario none.yaml: No such file"),
        (["--scenario", "bad.yaml"], "bad.load: a number of 0 or more expected, not 'high'"),
        (["--scenario", "equal", "--policy", "best"], "there is no policy 'best'"),
        (["--scenario", "equal", "--faults"], "the faults' options do not apply"),
        (["--scenario", "quarter", "--workers", "4"], "--workers is for scenarios whose workers"),
        (["--policy", "random"], "need --scenario"),
        ([], "say what to simulate"),
    ],
)
def test_a_mistake_is_one_clear_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.yaml").write_text("load: high\ntasks: [{name: a, service_s: 1}]\n")
    done = run("simulate", *arguments, cwd=tmp_path, code=2)
    assert message in done.stderr
    assert not done.stdout


def test_a_page_holds_everything_itself(saved: Path) -> None:
    done = run("report", saved.name, cwd=saved.parent)
    assert "report: report.html" in done.stderr
    page = Page((saved.parent / "report.html").read_text())
    wanted = ["The system", "A request", "Policies compared", "Latency"]
    wanted += ["Distribution over workers", "Workers over time: least_load"]
    assert [each for each in wanted if each not in page.headings] == []
    assert [each for each in wanted if each not in page.pictures] == []
    assert set(POLICIES.split(",")) <= set(page.cells)
    links = [each for each in page.addresses if not each.startswith("data:image/png;base64,")]
    assert all(address.startswith("#") for address in links), "nothing is fetched"
    assert {address[1:] for address in links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    text = (saved.parent / "report.html").read_text()
    assert "--seed 1 --seeds 2 --requests 400" in text
    assert "<script" not in text


def test_several_runs_are_chapters(saved: Path) -> None:
    run("report", saved.name, saved.name, "--out", "two.html", cwd=saved.parent)
    page = Page((saved.parent / "two.html").read_text())
    assert page.headings.count("Settings") == 2
    assert len(page.ids) == len(set(page.ids))


def test_paper_has_the_same(saved: Path) -> None:
    run("report", saved.name, "--pdf", "run.pdf", cwd=saved.parent)
    data = (saved.parent / "run.pdf").read_bytes()
    assert data.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", data)) >= 3


def test_a_comparison_is_drawn_at_once(tmp_path: Path) -> None:
    run(*SIMULATE, "--report", "now.html", cwd=tmp_path)
    assert "least_load" in (tmp_path / "now.html").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read run.json: No such file"),
        ("{", "run.json: it is not JSON"),
        ("[1]", "run.json: no run of lb"),
        ('{"lb_run": 1, "kind": "x", "title": "y"}', "what kind of run"),
    ],
)
def test_what_is_no_run_is_one_clear_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    done = run("report", "run.json", cwd=tmp_path, code=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_with_next_to_nothing_in_it_is_shown(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"lb_run": 1, "kind": "send", "title": "only a title"}')
    run("report", "run.json", "--pdf", "run.pdf", "--out", "run.html", cwd=tmp_path)
    assert "only a title" in (tmp_path / "run.html").read_text()
