"""Variables and flags over the file: who wins, what they reach, and how their mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbcore.core.topology import Address, PolicyConfig
from tests.shell.config_helpers import load_text, mistakes


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file() -> None:
    text, environ = "broker: {port: 1}\n", {"LB_BROKER__PORT": "2", "OTHER": "x"}
    assert load_text(text).broker.port == 1
    assert load_text(text, (), environ).broker.port == 2
    assert load_text(text, ["broker.port=3"], environ).broker.port == 3
    assert load_text(text, ["broker.port=3", "broker.port=4"], environ).broker.port == 4


def test_values_of_overrides_are_yaml() -> None:
    Path("a.py").write_text("")
    topology = load_text(
        "",
        [
            "tasks=[a.py, b.c]",
            "policy={name: random, cpu_weight: 0}",
            "logs.rotation=1 day",
            "limits.queue_bytes=2 MiB",
            "workers=[{name: x}, {name: y}]",
            "workers.y.cpus=[0]",
        ],
    )
    assert topology.tasks == (str(Path("a.py").absolute()), "b.c")
    assert topology.policy == PolicyConfig(name="random", cpu_weight=0.0)
    assert topology.logs.rotation == "1 day"
    assert topology.limits.queue_bytes == 2 << 20
    assert topology.workers[1].cpus == (0,)


@pytest.mark.parametrize(
    "override",
    [
        "workers.worker-2.weight=2",
        "workers[1].weight=2",
        "workers.1.weight=2",
        "workers.worker-2={name: worker-2, weight: 2}",
    ],
)
@pytest.mark.parametrize(
    "text",
    ["", "workers: 3", "workers: {count: 3}", "workers: [{}, {port: 0}, {name: worker-3}]"],
)
def test_one_worker_is_overridden_in_every_form_of_the_list(text: str, override: str) -> None:
    workers = load_text(text, [override]).workers
    assert [worker.name for worker in workers] == ["worker-1", "worker-2", "worker-3"]
    assert [worker.weight for worker in workers] == [1, 2, 1]


@pytest.mark.parametrize(
    "variable", ["LB_WORKERS__WORKER_2__WEIGHT", "LB_WORKERS__1__WEIGHT", "LB_workers__1__weight"]
)
def test_one_worker_is_overridden_by_a_variable(variable: str) -> None:
    workers = load_text("workers: {count: 3, weight: 4}", (), {variable: "2"}).workers
    assert [worker.weight for worker in workers] == [4, 2, 4]


def test_the_environment_of_one_worker_is_taken_as_it_is() -> None:
    flags = ["workers.w.1.env.PATH=a: [b #c", "workers[0].env.N=010"]
    environ = {"LB_WORKERS__0__ENV__lower__case": "1.10"}
    text = "workers: [{name: w.1, env: {KEPT: x}}, {env: {KEPT: y}}]"
    workers = load_text(text, flags, environ).workers
    assert workers[0].env == {"KEPT": "x", "PATH": "a: [b #c", "N": "010", "lower__case": "1.10"}
    assert workers[1].env == {"KEPT": "y"}


def test_workers_of_the_short_form_do_not_share_an_environment() -> None:
    text = "workers: {count: 2, env: {A: 1}}"
    first, second = load_text(text, ["workers.worker-1.env.B=2"]).workers
    assert first.env == {"A": "1", "B": "2"}
    assert second.env == {"A": "1"}


def test_the_number_of_workers() -> None:
    assert len(load_text("", ["workers=5"]).workers) == 5
    assert len(load_text("workers: 2", ["workers.count=5"]).workers) == 5
    assert len(load_text("workers: {count: 2}", (), {"LB_WORKERS__COUNT": "5"}).workers) == 5
    environ = {"LB_WORKERS__WORKER_7__NICE": "3", "LB_WORKERS": "7"}
    assert load_text("", (), environ).workers[6].nice == 3


def test_the_name_of_a_policy_gets_weights() -> None:
    topology = load_text("policy: random", ["policy.cpu_weight=3"])
    assert topology.policy == PolicyConfig(name="random", cpu_weight=3.0)


def test_a_socket_replaces_a_port_and_a_port_a_socket() -> None:
    assert load_text("broker: {port: 1}", ["broker.path=/b"]).broker == Address(path="/b")
    assert load_text("broker: {path: /b}", ["broker.port=1"]).broker == Address(port=1)
    assert load_text("", ["workers[0].path=/w"]).workers[0].address == Address(path="/w")
    (line,) = mistakes("", ["broker.path=/b"], {"LB_BROKER__PORT": "1"})
    assert line.startswith("--set broker.path: a Unix socket has no `port`")


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("broker.port=x", "expected a port from 0 to 65535, found 'x'"),
        ("broker.port=", "expected a port from 0 to 65535, found nothing; give it a value or"),
        ("broker.prot=1", "no such key; did you mean broker.port?"),
        ("borker.port=1", "no such key; did you mean broker.port?"),
        ("broker.port.x=1", "no such key; did you mean broker.port?"),
        ("policy.weight_cpu=1", "no such key; did you mean policy.cpu_weight?"),
        ("zzz=1", "the topology has no such key; name a key as in broker.port"),
        ("workers.worker-1.wieght=1", "no such key; did you mean workers.worker-1.weight?"),
        ("workers.wrker-1.weight=1", "there is no worker 'wrker-1'; did you mean 'worker-1'?"),
        ("workers[3].weight=1", "there is no workers[3]; they are 0 to 2"),
        ("workers.count=3", "`workers` is a list here and has no `count`; workers=4 replaces"),
        ("workers.worker-1.env={1: 2}", "expected a variable name"),
        ("name=[", "not valid YAML: did not find expected node content"),
        ("name={a: 1, a: 2}", "this key is already given"),
        ("broker.port", "write it as KEY=VALUE, such as --set broker.port=8001"),
        (".broker.port=1", "write it as KEY=VALUE"),
        ("broker..port=1", "write it as KEY=VALUE"),
        ("=1", "write it as KEY=VALUE"),
        ("", "write it as KEY=VALUE"),
        ("name=" + "x" * 5000, "a value of more than 4096 characters"),
    ],
)
def test_a_mistake_in_a_flag_names_the_flag(flag: str, line: str) -> None:
    (found,) = mistakes("", [flag])
    source, _, message = found.partition(": ")
    assert source == f"--set {flag.partition('=')[0]}"
    assert line in message


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("LB_BROKER__PORT", "x", "broker.port: expected a port from 0 to 65535, found 'x'"),
        ("LB_BROKER_PORT", "1", "no such key; did you mean LB_BROKER__PORT?"),
        ("LB_BROKER__PRT", "1", "no such key; did you mean LB_BROKER__PORT?"),
        ("LB_LOG_LEVEL", "DEBUG", "no such key; did you mean LB_LOGS__LEVEL?"),
        ("LB_NOVENV", "1", "no such key; did you mean LB_NO_VENV?"),
        ("LB_QQQ", "1", "no such key; unset it, or name a key as in LB_BROKER__PORT"),
        ("LB_", "1", "no such key; unset it"),
        (
            "LB_WORKERS__WORKER_1__WIEGHT",
            "1",
            "no such key; did you mean LB_WORKERS__WORKER_1__WEIGHT?",
        ),
        ("LB_WORKERS__WRKER_1__WEIGHT", "1", "did you mean 'worker-1'?"),
        ("LB_WORKERS__COUNT", "3", "LB_WORKERS=4 replaces the list"),
    ],
)
def test_a_mistake_in_a_variable_names_the_variable(name: str, value: str, line: str) -> None:
    (found,) = mistakes("", (), {name: value})
    source, _, message = found.partition(": ")
    assert source == name
    assert line in message


def test_variables_that_are_no_overrides_are_left_alone() -> None:
    environ = {"LB_CONFIG": "x", "LB_NO_VENV": "1", "LB_PROC_NAME": "worker-1", "LBX": "1"}
    assert load_text("", (), environ) == load_text("")


def test_problems_of_the_file_come_first_then_those_of_overrides() -> None:
    lines = mistakes("broker:\n  prot: 1\n", ["x=1"], {"LB_Y": "1", "LB_BROKER__PORT": "a"})
    assert [line.split(": ")[0] for line in lines] == [
        *("config.yaml:2", "LB_Y", "--set x", "LB_BROKER__PORT")
    ]


def test_an_override_does_not_hide_a_section_that_is_wrong() -> None:
    (line,) = mistakes("broker: [1]\n", ["broker.port=1"])
    assert line.startswith("config.yaml:1: broker: expected keys")
    (line,) = mistakes("workers: many\n", ["workers.worker-1.weight=1"])
    assert line.startswith("config.yaml:1: workers: expected a list")


def test_control_characters_of_a_flag_do_not_reach_the_terminal() -> None:
    (line,) = mistakes("", ["\x1b[2J=1"])
    assert "\x1b" not in line
