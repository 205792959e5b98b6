"""A policy of the user's own, from the example to what happens when it is wrong."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbcore import Client
from tests.e2e.running import REPOSITORY, RunningSystem, topology
from tests.e2e.streaming import pids, streaming

EXAMPLE = REPOSITORY / "examples" / "my_policies.py"
OWN = "policy: my_policies.py:HomeFirst\n"


@pytest.fixture
def lb(tmp_path: Path) -> Iterator[RunningSystem]:
    """Three workers and the example beside their topology, not started."""
    shutil.copy(EXAMPLE, tmp_path)
    system = RunningSystem(tmp_path, topology(3, more=OWN))
    try:
        yield system
    finally:
        system.clean_up()


def set_policy(lb: RunningSystem, policy: str) -> None:
    lb.config.write_text(topology(3, more=policy))


def homes(client: Client, task: str, window: int = 1) -> Counter[str]:
    """Who did how many of 30 requests of that task."""
    arguments = {"sleep": [0.005], "where": None}[task]
    return Counter(reply.worker for reply in client.stream([(task, arguments)] * 30, window=window))


def test_the_example_chooses_as_it_says(lb: RunningSystem) -> None:
    assert "policy my_policies.py:HomeFirst" in lb.cli("check").stdout
    lb.up()
    client = lb.client()
    # one at a time always at home, and with a queue also elsewhere
    assert len(homes(client, "sleep")) == 1
    assert len(homes(client, "where")) == 1
    assert len(homes(client, "sleep", window=20)) > 1
    assert "policy my_policies.py:HomeFirst" in lb.log("broker")
    status = json.loads(lb.cli("status", "--json").stdout)
    assert status["broker"]["policy"] == "my_policies.py:HomeFirst"
    (decision,) = client.explain(last=1)
    assert decision["policy"] == "my_policies.py:HomeFirst"
    assert decision["reason"].endswith("is the home or nearest to it")
    lb.cli("explain", "--last", "1")
    lb.down()


def test_it_comes_and_goes_with_the_file(lb: RunningSystem) -> None:
    set_policy(lb, "policy: round_robin\n")
    lb.up()
    before = pids(lb)
    client = lb.client()
    with streaming(lb, clients=1) as stream:
        set_policy(lb, OWN)
        # or the saved file was seen before
        lb.cli("reload")
        lb.wait_for_log("supervisor", r"~ policy round_robin → my_policies.py:HomeFirst$")
        stream.flow()
    assert len(homes(client, "where")) == 1
    set_policy(lb, "policy: round_robin\n")
    lb.cli("reload")
    assert set(homes(client, "where").values()) == {10}
    assert pids(lb) == before
    lb.down()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import no_such_module\n", "my_policies.py:1: ModuleNotFoundError: No module named"),
        ("class HomeFirst: pass\n", "my_policies.py:HomeFirst: is no policy; write `class "),
        ("x = 1\n", "my_policies.py:HomeFirst: there is no class 'HomeFirst', nor any other"),
        ("__import__('os')._exit(7)\n", "the import ends its process"),
    ],
)
def test_one_that_cannot_be_loaded_is_one_line(
    lb: RunningSystem, text: str, complaint: str
) -> None:
    own = lb.folder / "my_policies.py"
    good = own.read_text()
    own.write_text(text)
    line = lb.cli("check", code=2).stdout.splitlines()[0]
    assert line.startswith(f"config.yaml:{lb.yaml[: lb.yaml.index('policy:')].count(chr(10)) + 1}:")
    assert complaint in line
    if "_exit" not in text:
        error = lb.cli("up", "-d", code=2).stderr
        assert f"policy: {complaint}" in error
        lb.check_gone()
    set_policy(lb, "policy: {name: round_robin}\n")
    lb.up()
    before = pids(lb)
    client = lb.client()
    set_policy(lb, OWN)
    error = lb.cli("reload", code=2).stderr
    assert complaint in error
    assert error.endswith("; nothing is changed\n")
    assert len(error.splitlines()) == 1
    assert client.status()["broker"]["policy"] == "round_robin"
    assert set(homes(client, "where").values()) == {10}
    assert pids(lb) == before
    own.write_text(good)
    lb.cli("reload")
    assert len(homes(client, "where")) == 1
    lb.down()


def test_one_that_is_not_there_is_a_mistake_of_the_file(lb: RunningSystem) -> None:
    set_policy(lb, "policy: nowhere.py:HomeFirst\n")
    message = "policy: expected an existing Python file, found 'nowhere.py'"
    assert message in lb.cli("check", code=2).stdout
    assert message in lb.cli("up", code=2).stderr


def test_one_that_fails_at_work_costs_a_line_in_the_log(lb: RunningSystem) -> None:
    own = lb.folder / "my_policies.py"
    own.write_text(own.read_text().replace("        able = ", "        1 / 0\n        able = "))
    lb.up()
    client = lb.client()
    assert len(homes(client, "sleep", window=6)) == 3
    lb.wait_for_log(
        "broker",
        r"ERROR .*policy my_policies.py:HomeFirst: choose raised ZeroDivisionError: division by "
        r"zero; least_pending takes its place",
    )
    assert lb.log("broker").count("takes its place") == 1
    assert "least_pending took its place" in client.explain(last=1)[0]["reason"]
    lb.down()


def test_a_broker_that_starts_again_serves_without_it(lb: RunningSystem) -> None:
    lb.up()
    client = lb.client()
    assert len(homes(client, "where")) == 1
    (lb.folder / "my_policies.py").write_text("broken(\n")
    lb.kill("broker")
    lb.wait_for_restart("broker")
    assert client.call("where") in {"worker-1", "worker-2", "worker-3"}
    lb.wait_for_log("broker", r"ERROR .*never closed; least_load takes its place")
    lb.down()
