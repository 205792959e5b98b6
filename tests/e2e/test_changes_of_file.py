"""Saving the topology file changes the running system; requests flow through it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.e2e.running import RunningSystem, topology
from tests.e2e.streaming import (
    LISTED,
    last_change,
    names,
    pids,
    save,
    streaming,
    wait_for_change,
    wait_for_workers,
)

# ---- the file ------------------------------------------------------------------------------------


def test_from_one_to_five_starts_four_and_stops_none(system: Start) -> None:
    lb = system(1)
    before = pids(lb)
    with streaming(lb) as stream:
        began = time.monotonic()
        save(lb, ("workers: 1", "workers: 5"))
        after = wait_for_workers(lb, *names(1, 2, 3, 4, 5))
        took_s = time.monotonic() - began
        assert after["worker-1"] == before["worker-1"]
        assert len(set(after.values())) == 5
        stream.flows_to(*names(1, 2, 3, 4, 5))
        assert len(re.findall(r"started, pid", lb.log("supervisor"))) == 6, "a broker and five"
        save(lb, ("workers: 5", "workers: 2"))
        last = wait_for_workers(lb, *names(1, 2))
        stream.flows_to(*names(1, 2))
    assert last == {name: after[name] for name in names(1, 2)}
    assert took_s < 5.0, "meant are 2 s, on a machine that does nothing else"
    lb.down()


def test_saving_the_file_changes_what_has_changed_and_nothing_else(system: Start) -> None:
    lb = system(LISTED)
    before = pids(lb)
    with streaming(lb) as stream:
        save(
            lb,
            ("{name: worker-2}", "{name: worker-2, weight: 2}"),
            ("{name: worker-3}", "{name: worker-3, env: {COLOUR: blue}}, {name: worker-5}"),
        )
        lines = ["+ worker-5", "~ worker-2 weight 1 → 2", "~ worker-3 restart: env"]
        wait_for_change(lb, lambda change: change.get("changes") == lines)
        after = wait_for_workers(lb, *names(1, 2, 3, 5))
        lb.wait_for_log("supervisor", "config.yaml saved: done in")
        stream.flows_to(*names(1, 2, 3, 5))
    after = pids(lb)
    assert [name for name in before if before[name] != after[name]] == ["worker-3"]
    for line in lines:
        assert f"[-] {line}\n" in lb.log("supervisor")
    status = json.loads(lb.cli("status", "--json").stdout)
    weights = {worker["name"]: worker["weight"] for worker in status["workers"]}
    assert weights == {"worker-1": 1, "worker-2": 2, "worker-3": 1, "worker-5": 1}
    assert status["last_change"]["ok"]
    assert "ago (config.yaml saved): + worker-5" in lb.cli("status").stdout
    lb.down()


def test_policy_limits_and_log_level_change_in_place(system: Start) -> None:
    lb = system(2)
    before = pids(lb)
    with streaming(lb) as stream:
        text = "policy: round_robin\nlimits: {queue: 5000}\nlogs: {level: DEBUG}\n"
        lb.config.write_text(lb.config.read_text() + text)
        lb.wait_for_log("broker", r"DEBUG .*(noop|sleep) \d+:\d+.* -> worker-\d")
        stream.flow()
        assert stream.client.status()["broker"]["policy"] == "round_robin"
        assert last_change(lb)["changes"] == [
            "~ policy least_load → round_robin",
            "~ logs.level INFO → DEBUG",
            "~ limits.queue 1000000 → 5000",
        ]
        # a worker's own level: what it says of itself below INFO
        lb.config.write_text(lb.config.read_text().replace("DEBUG", "ERROR"))
        wait_for_change(lb, lambda change: change["changes"] == ["~ logs.level DEBUG → ERROR"])
        stream.flow()
    assert pids(lb) == before
    lb.down()


def test_concurrency_and_address_need_a_new_process(system: Start) -> None:
    lb = system(LISTED)
    before = pids(lb)
    with streaming(lb) as stream:
        save(
            lb,
            ("{name: worker-1}", "{name: worker-1, concurrency: 4}"),
            ("{name: worker-2}", "{name: worker-2, path: two.sock}"),
        )
        lb.wait_for_log("supervisor", "config.yaml saved: done in")
        stream.flows_to(*names(1, 2, 3))
        rows = {row["name"]: row for row in stream.client.status()["workers"]}
        assert rows["worker-1"]["concurrency"] == 4
        assert rows["worker-2"]["address"] == f"unix:{lb.folder}/two.sock"
    after = pids(lb)
    assert [name for name in before if before[name] == after[name]] == ["worker-3"]
    lb.down()
    assert not (lb.folder / "two.sock").exists()


def test_a_worker_that_is_renamed_keeps_the_address(system: Start) -> None:
    lb = system("[{name: worker-1}, {name: old, path: a.sock}]")
    with streaming(lb) as stream:
        save(lb, ("name: old", "name: new"))
        wait_for_workers(lb, "worker-1", "new")
        stream.flows_to("worker-1", "new")
        assert (lb.folder / "a.sock").exists()
    lb.down()


def test_a_file_with_a_mistake_changes_nothing_and_is_told_of(system: Start) -> None:
    lb = system(2)
    before, good = lb.state(), lb.config.read_text()
    with streaming(lb, clients=1) as stream:
        lb.config.write_text(good + "polcy: random\n")
        wait_for_change(lb, lambda change: not change.get("ok", True))
        mistake = "polcy: unknown key; did you mean `policy`?"
        assert mistake in last_change(lb)["error"]
        lb.wait_for_log("supervisor", f"ERROR .*nothing is changed: .*{re.escape(mistake)}")
        # commands still find what runs
        done = lb.cli("status")
        assert "failed, nothing was changed:\n" in done.stdout
        assert f"{mistake}\n" in done.stdout
        assert "this is what runs" in done.stderr
        assert mistake in json.loads(lb.cli("status", "--json").stdout)["last_change"]["error"]
        assert mistake in lb.cli("reload", code=2).stderr
        stream.flow()
        lb.config.write_text(good)
        wait_for_change(lb, lambda change: bool(change.get("ok")))
        assert "failed" not in lb.cli("status").stdout.partition("\n")[2].partition("\n")[0]
    after = lb.state()
    assert [w.pid for w in after.workers] == [w.pid for w in before.workers]
    lb.down()


@pytest.mark.parametrize(
    ("section", "word"),
    [("name: other\n", "name"), ("logs: {folder: other}\n", "logs.folder")],
)
def test_what_cannot_change_is_refused_as_a_whole(section: str, word: str, system: Start) -> None:
    lb = system(2)
    before = pids(lb)
    save(lb, ("workers: 2", f"workers: 3\n{section}"))
    wait_for_change(lb, lambda change: not change.get("ok", True))
    assert f"{word} cannot change while the system runs" in last_change(lb)["error"]
    assert pids(lb) == before
    assert f"{word} cannot change" in lb.cli("reload", code=2).stderr
    lb.cli("down", "-t", "5")
    lb.wait_gone()


def test_a_port_in_use_changes_nothing(system: Start) -> None:
    lb = system(LISTED)
    before, port = pids(lb), lb.state().broker.address.rpartition(":")[2]
    save(lb, ("{name: worker-3}", f"{{name: worker-3}}, {{name: worker-4, port: {port}}}"))
    wait_for_change(lb, lambda change: not change.get("ok", True))
    assert f"worker-4 cannot listen on 127.0.0.1:{port}" in last_change(lb)["error"]
    assert pids(lb) == before
    lb.down()


def test_overrides_of_up_stay_in_force(tmp_path: Path) -> None:
    lb = RunningSystem(tmp_path, topology(2))
    try:
        lb.up("--set", "policy=random", "--workers", "3")
        save(lb, ("workers: 2", "workers: 2\npolicy: round_robin\nlimits: {queue: 77}"))
        wait_for_change(lb, lambda change: change.get("changes") == ["~ limits.queue 1000000 → 77"])
        assert lb.client().status()["broker"]["policy"] == "random"
        wait_for_workers(lb, *names(1, 2, 3))
        lb.cli("scale", "1")
        wait_for_workers(lb, "worker-1")
        lb.down()
    finally:
        lb.clean_up()
