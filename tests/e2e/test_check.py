"""``check``, and the same checks before anything else: every mistake, each with its place."""

from __future__ import annotations

import pytest

from tests.conftest import Start

MISTAKES = """\
name: shop
broker:
  prot: 8000
workers:
  - {name: a, port: 9001}
  - {name: b, port: 9001}
  - {name: a, weight: -1}
policy: lest_load
limits: {queue: many}
"""
PLACES = [
    "config.yaml:3: broker.prot: unknown key; did you mean `port`?",
    "config.yaml:6: workers[1].port: ",
    "config.yaml:7: workers[2].weight: ",
    "config.yaml:7: workers[2].name: ",
    "config.yaml:8: policy",
    "config.yaml:9: limits.queue: ",
]


@pytest.mark.parametrize("command", [["check"], ["up"], ["up", "-d"], ["send", "--task", "noop"]])
def test_all_mistakes_are_reported_before_anything_is_done(
    command: list[str], system: Start
) -> None:
    lb = system(yaml=MISTAKES, start=False)
    done = lb.cli(*command, code=2)
    # what is wrong is the answer of `check`, and an error of the others
    answer, other = (done.stdout, done.stderr)[:: 1 if command == ["check"] else -1]
    assert other == ""
    assert "6 mistakes" in answer
    lines = [line for line in answer.splitlines() if "6 mistakes" not in line]
    for line, place in zip(lines, PLACES, strict=True):
        assert line.strip().startswith(place)
    assert "did you mean `least_load`?" in lines[4]
    lb.check_gone()


def test_a_right_topology_is_told_so(system: Start) -> None:
    lb = system(start=False)
    assert lb.cli("check").returncode == 0
    assert not (lb.folder / "logs").exists()


def test_check_imports_the_tasks(system: Start) -> None:
    lb = system(yaml="tasks: [broken.py]\n", start=False)
    (lb.folder / "broken.py").write_text("x = 1 / 0\n")
    answer = lb.cli("check", code=2).stdout
    assert "broken.py" in answer
    assert "ZeroDivisionError" in answer


@pytest.mark.parametrize(
    ("flag", "variables", "message"),
    [
        ("broker.prot=1", {}, "--set broker.prot"),
        ("", {"LB_BROKER__PROT": "1"}, "LB_BROKER__PROT"),
        ("", {"LB_BROKER__PORT": "high"}, "LB_BROKER__PORT"),
    ],
)
def test_a_wrong_override_is_named(
    flag: str, variables: dict[str, str], message: str, system: Start
) -> None:
    lb = system(start=False)
    arguments = ["check", *(["--set", flag] if flag else [])]
    assert message in lb.cli(*arguments, code=2, environment=variables).stdout


def test_a_file_that_is_not_there(system: Start) -> None:
    lb = system(start=False)
    error = lb.cli("up", "-c", "other.yaml", code=2).stderr
    assert error.count("\n") == 1
    assert "other.yaml" in error
