"""Topologies from mappings: what is right becomes values, what is wrong a list of problems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core import policies
from lbcore.core.config import build_topology
from lbcore.core.problems import KeyPath, Origin, Problem, nearest_name, report, spell_path
from lbcore.core.schema import LEVELS, POLICIES
from lbcore.core.topology import Address, Limits, LogsConfig, PolicyConfig, Topology, WorkerConfig

SOURCE = "/home-of/lb/config.yaml"
FILES = ("/home-of/lb/my_tasks.py", "/elsewhere/other.py")
CORES = 8


def build(mapping: object, origins: Mapping[KeyPath, Origin] | None = None) -> Any:
    """The topology, or the list of problems."""
    return build_topology(
        mapping, origins or {}, source=SOURCE, cores=CORES, file_exists=FILES.__contains__
    )


def good(mapping: object) -> Topology:
    result = build(mapping)
    assert isinstance(result, Topology), [str(problem) for problem in result]
    return result


def bad(mapping: object) -> dict[str, str]:
    """The messages of all problems by key."""
    result = build(mapping)
    assert isinstance(result, list), "no problem was found"
    return {problem.key: problem.message for problem in result}


def test_nothing_given_is_three_workers_on_the_ports_of_the_origin() -> None:
    topology = good({})
    assert topology.name == "lb"
    assert topology.broker == Address(host="127.0.0.1", port=8000)
    assert [(worker.name, worker.address.port) for worker in topology.workers] == [
        ("worker-1", 9001),
        ("worker-2", 9002),
        ("worker-3", 9003),
    ]
    assert topology.policy == PolicyConfig()
    assert topology.logs == LogsConfig()
    assert topology.limits == Limits()
    assert topology.tasks == ()
    assert topology.source == SOURCE


def test_every_key_of_a_worker() -> None:
    worker = {
        "name": "w.1_a-b",
        "host": "localhost",
        "port": 9001,
        "weight": 2,
        "concurrency": 4,
        "cpus": [0, 7],
        "nice": -5,
        "tags": ["gpu", "big one"],
        "env": {"OMP_NUM_THREADS": 2, "DEBUG": True, "RATIO": 0.5, "TEXT": ""},
    }
    assert good({"workers": [worker]}).workers == (
        WorkerConfig(
            name="w.1_a-b",
            address=Address(host="127.0.0.1", port=9001),
            weight=2.0,
            concurrency=4,
            cpus=(0, 7),
            nice=-5,
            tags=("gpu", "big one"),
            env={"OMP_NUM_THREADS": "2", "DEBUG": "true", "RATIO": "0.5", "TEXT": ""},
        ),
    )


@pytest.mark.parametrize("workers", [4, {"count": 4}])
def test_short_forms_name_workers_and_leave_ports_free(workers: object) -> None:
    topology = good({"workers": workers})
    assert [worker.name for worker in topology.workers] == [f"worker-{i}" for i in (1, 2, 3, 4)]
    assert {worker.address for worker in topology.workers} == {Address(port=0)}


def test_short_form_gives_all_workers_the_same_settings() -> None:
    workers = good({"workers": {"count": 2, "weight": 3, "env": {"A": "1"}}}).workers
    assert [worker.weight for worker in workers] == [3.0, 3.0]
    assert [worker.env for worker in workers] == [{"A": "1"}, {"A": "1"}]


def test_names_and_ports_of_a_list_have_defaults_by_position() -> None:
    workers = good({"workers": [{}, {"name": "b"}, {}]}).workers
    assert [worker.name for worker in workers] == ["worker-1", "b", "worker-3"]
    assert {worker.address.port for worker in workers} == {0}


def test_unix_sockets_and_files_start_from_the_folder_of_the_yaml() -> None:
    topology = good(
        {
            "broker": {"path": "run/broker.sock"},
            "workers": [{"path": "/run/w1.sock"}, {"path": "./run/w2.sock"}],
            "tasks": ["my_tasks.py", "/elsewhere/other.py", "package.module"],
        }
    )
    assert topology.broker == Address(path="/home-of/lb/run/broker.sock")
    assert topology.workers[0].address.path == "/run/w1.sock"
    assert topology.workers[1].address.path == "/home-of/lb/run/w2.sock"
    assert topology.tasks == ("/home-of/lb/my_tasks.py", "/elsewhere/other.py", "package.module")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_loopback_addresses(host: str) -> None:
    expected = "127.0.0.1" if host.lower() == "localhost" else host
    assert good({"broker": {"host": host}}).broker.host == expected


def test_policy_as_a_name_or_a_mapping() -> None:
    assert good({"policy": "random"}).policy == PolicyConfig(name="random")
    assert good({"policy": "Round_Robin"}).policy.name == "round_robin"
    mapping = {"name": "least_load", "pending_weight": 0, "cpu_weight": 2}
    assert good({"policy": mapping}).policy == PolicyConfig(pending_weight=0.0, cpu_weight=2.0)
    assert good({"policy": {"cpu_weight": 0.5}}).policy == PolicyConfig(cpu_weight=0.5)


def test_a_policy_of_the_users_own() -> None:
    config = good({"policy": "my_tasks.py:Mine"}).policy
    assert config.name == "/home-of/lb/my_tasks.py:Mine"
    assert (config.is_own, config.label) == (True, "my_tasks.py:Mine")
    mapping = {"name": " ./my_tasks.py:Mine ", "cpu_weight": 0.5}
    assert good({"policy": mapping}).policy == PolicyConfig(name=config.name, cpu_weight=0.5)
    assert good({"policy": "package.module:Mine"}).policy.name == "package.module:Mine"
    assert not PolicyConfig().is_own


def test_the_names_of_policies_are_those_that_exist() -> None:
    assert set(POLICIES) == set(policies.POLICIES)


@pytest.mark.parametrize("name", LEVELS)
def test_levels_in_any_case(name: str) -> None:
    assert good({"logs": {"level": name.lower()}}).logs.level == name


@pytest.mark.parametrize(
    ("value", "kept"),
    [("10 MB", "10 MB"), ("1 day", "1 day"), ("00:00", "00:00"), (" daily ", "daily")],
)
def test_rotations(value: object, kept: str) -> None:
    assert good({"logs": {"rotation": value}}).logs.rotation == kept


@pytest.mark.parametrize(
    ("value", "kept"), [(5, "5"), (0, "0"), ("12", "12"), ("7 days", "7 days")]
)
def test_retentions(value: object, kept: str) -> None:
    assert good({"logs": {"retention": value}}).logs.retention == kept


@pytest.mark.parametrize(
    ("value", "size"), [(2048, 2048), ("64 MiB", 64 << 20), ("2 kB", 2000), ("1.5 KiB", 1536)]
)
def test_sizes(value: object, size: int) -> None:
    assert good({"limits": {"frame_bytes": value}}).limits.frame_bytes == size


@pytest.mark.parametrize(
    ("mapping", "key", "part"),
    [
        ({"version": 2}, "version", "expected 1, found 2"),
        ({"version": True}, "version", "found true"),
        ({"name": "a/b"}, "name", "letters, digits"),
        ({"name": ".hidden"}, "name", "start with a letter or digit"),
        ({"name": "x" * 65}, "name", "at most 64"),
        ({"name": 7}, "name", "write it in quotes"),
        ({"name": None}, "name", "found nothing; give it a value or remove the line"),
        ({"broker": {"port": 65536}}, "broker.port", "from 0 to 65535, found 65536"),
        ({"broker": {"port": -1}}, "broker.port", "found -1"),
        ({"broker": {"port": True}}, "broker.port", "found true"),
        ({"broker": {"port": "8000"}}, "broker.port", "found '8000'"),
        ({"broker": {"port": 8000.0}}, "broker.port", "without point"),
        ({"broker": {"host": 127}}, "broker.host", "found 127"),
        ({"broker": {"path": "~/x"}}, "broker.path", "`~` is not expanded"),
        ({"broker": {"path": "a\nb"}}, "broker.path", r"found 'a\nb'"),
        ({"broker": {"path": "run/"}}, "broker.path", "path of a Unix socket"),
        ({"broker": {"path": "é" * 60}}, "broker.path", "at most 107 bytes, found 132"),
        ({"broker": {"path": "x", "port": 1}}, "broker.path", "has no `port`; keep either"),
        ({"broker": {"path": "x", "host": "::1"}}, "broker.path", "has no `host`"),
        ({"broker": []}, "broker", "expected keys such as `host:` and `port:`, found a list"),
        ({"workers": []}, "workers", "at least one worker is needed"),
        ({"workers": 0}, "workers", "from 1 to 4096, found 0"),
        ({"workers": 4097}, "workers", "found 4097"),
        ({"workers": True}, "workers", "a list of workers, a number of them"),
        ({"workers": "three"}, "workers", "found 'three'"),
        ({"workers": None}, "workers", "found nothing"),
        ({"workers": [None]}, "workers[0]", "found nothing"),
        ({"workers": ["w1"]}, "workers[0]", "write `- {name: w1}`"),
        ({"workers": [{}] * 4097}, "workers", "expected at most 4096 workers, found 4097"),
        ({"workers": {"weight": 1}}, "workers", "add the count"),
        ({"workers": {"w1": {}, "w2": {}}}, "workers", "write each as `- {name: worker-1}`"),
        ({"workers": {"count": 1, "port": 1}}, "workers.port", "unknown key"),
        ({"workers": {"count": 2.5}}, "workers.count", "found 2.5"),
        ({"workers": [{"name": "broker"}]}, "workers[0].name", "taken by lb's own process"),
        ({"workers": [{"name": "Supervisor"}]}, "workers[0].name", "taken"),
        ({"workers": [{"weight": 0}]}, "workers[0].weight", "found 0"),
        ({"workers": [{"weight": float("nan")}]}, "workers[0].weight", "found nan"),
        ({"workers": [{"weight": float("inf")}]}, "workers[0].weight", "found inf"),
        ({"workers": [{"weight": 10**400}]}, "workers[0].weight", "more than 40 digits"),
        ({"workers": [{"concurrency": 0}]}, "workers[0].concurrency", "from 1"),
        ({"workers": [{"concurrency": True}]}, "workers[0].concurrency", "found true"),
        ({"workers": [{"cpus": [0, 8]}]}, "workers[0].cpus[1]", "from 0 to 7, found 8"),
        ({"workers": [{"cpus": ["x", 8]}]}, "workers[0].cpus[1]", "from 0 to 7, found 8"),
        ({"workers": [{"cpus": [1, 0, 1]}]}, "workers[0].cpus[2]", "already workers[0].cpus[0]"),
        ({"workers": [{"cpus": 1}]}, "workers[0].cpus", "put it in brackets"),
        ({"workers": {"count": 2, "cpus": [9]}}, "workers.cpus[0]", "from 0 to 7"),
        ({"workers": [{"nice": 20}]}, "workers[0].nice", "from -20 to 19"),
        ({"workers": [{"tags": ["a", 1]}]}, "workers[0].tags[1]", "write it in quotes"),
        ({"workers": [{"env": {"A": None}}]}, "workers[0].env.A", 'write "" for an empty'),
        ({"workers": [{"env": {"A": [1]}}]}, "workers[0].env.A", "found a list"),
        ({"workers": [{"env": {"A": "\0"}}]}, "workers[0].env.A", "NUL"),
        ({"workers": [{"env": {"1A": "x"}}]}, "workers[0].env.1A", "variable name"),
        ({"workers": [{"env": {"A=B": "x"}}]}, "workers[0].env.'A=B'", "variable name"),
        ({"policy": "least_laod"}, "policy", "did you mean `least_load`?"),
        ({"policy": "zzz"}, "policy", "one of least_load, least_pending"),
        ({"policy": 3}, "policy", "a policy's name"),
        ({"policy": "none.py:Mine"}, "policy", "an existing Python file, found 'none.py'"),
        ({"policy": {"name": "none.py:Mine"}}, "policy.name", "an existing Python file"),
        ({"policy": "my_tasks.py:"}, "policy", "such as my_policies.py:MyPolicy, found"),
        ({"policy": ":Mine"}, "policy", "such as my_policies.py:MyPolicy, found"),
        ({"policy": "my_tasks.py:1"}, "policy", "such as my_policies.py:MyPolicy, found"),
        ({"policy": "~/my_tasks.py:Mine"}, "policy", "such as my_policies.py:MyPolicy, found"),
        ({"policy": "a-b:Mine"}, "policy", "such as my_policies.py:MyPolicy, found"),
        ({"policy": None}, "policy", "found nothing"),
        ({"policy": {"name": None}}, "policy.name", "found nothing"),
        ({"policy": {"cpu_weight": -1}}, "policy.cpu_weight", "found -1"),
        ({"policy": {"pending_weight": "1"}}, "policy.pending_weight", "found '1'"),
        ({"tasks": "my_tasks.py"}, "tasks", "put it in brackets"),
        ({"tasks": ["none.py"]}, "tasks[0]", "an existing Python file, found 'none.py'"),
        ({"tasks": [3, "none.py"]}, "tasks[1]", "an existing Python file"),
        ({"tasks": ["a b"]}, "tasks[0]", "a module (my_package.tasks) or a file"),
        ({"tasks": ["my_tasks.py", "my_tasks.py"]}, "tasks[1]", "already tasks[0]"),
        ({"logs": {"level": "WARN"}}, "logs.level", "did you mean `WARNING`?"),
        ({"logs": {"format": "xml"}}, "logs.format", "one of text, json"),
        ({"logs": {"rotation": 10}}, "logs.rotation", "add a unit"),
        ({"logs": {"rotation": "often"}}, "logs.rotation", "found 'often'"),
        ({"logs": {"retention": -1}}, "logs.retention", "a number of files"),
        ({"logs": {"retention": True}}, "logs.retention", "found true"),
        ({"logs": {"folder": ""}}, "logs.folder", "path of a folder"),
        ({"logs": None}, "logs", "give it keys or remove the line"),
        ({"limits": {"queue": 0}}, "limits.queue", "from 1"),
        ({"limits": {"queue": 1e6}}, "limits.queue", "without point and exponent"),
        ({"limits": {"frame_bytes": 1 << 32}}, "limits.frame_bytes", "4294967295"),
        ({"limits": {"frame_bytes": "64 apples"}}, "limits.frame_bytes", "such as 64 MiB"),
        ({"limits": {"drain_s": float("inf")}}, "limits.drain_s", "found inf"),
        ([], "", "keys such as `broker:`"),
        ("text", "", "found 'text'"),
        (None, "", "found nothing"),
    ],
)
def test_one_mistake(mapping: object, key: str, part: str) -> None:
    problems = bad(mapping)
    assert part in problems[key]
    others = {other for other in problems if other != key}
    # two parametrizations hold a second mistake, before the one that is looked at
    assert others <= {"workers[0].cpus[0]", "tasks[0]"}


@pytest.mark.parametrize(
    ("mapping", "key", "nearest"),
    [
        ({"nmae": "x"}, "nmae", "name"),
        ({"Broker": {}}, "Broker", "broker"),
        ({"modules": []}, "modules", "tasks"),
        ({"broker": {"prot": 1}}, "broker.prot", "port"),
        ({"broker": {"bind": "x"}}, "broker.bind", "host"),
        ({"workers": [{"wieght": 1}]}, "workers[0].wieght", "weight"),
        ({"workers": [{"threads": 1}]}, "workers[0].threads", "concurrency"),
        ({"workers": {"replicas": 3, "count": 1}}, "workers.replicas", "count"),
        ({"policy": {"cpu_wieght": 1}}, "policy.cpu_wieght", "cpu_weight"),
        ({"limits": {"max_attempt": 1}}, "limits.max_attempt", "max_attempts"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_nearest(
    mapping: object, key: str, nearest: str
) -> None:
    (problem,) = build(mapping)
    assert problem.key == key
    assert problem.nearest == nearest
    assert f"did you mean `{nearest}`?" in problem.message


def test_a_key_in_the_wrong_place_is_told_where_it_belongs() -> None:
    problems = bad({"port": 8000, "limits": {"level": "INFO"}})
    assert problems["port"] == "unknown key here; it belongs under `broker` or `workers`"
    assert problems["limits.level"] == "unknown key here; it belongs under `logs` or `durability`"


def test_a_key_like_no_other_is_told_all() -> None:
    assert bad({"broker": {"zzzz": 1}}) == {
        "broker.zzzz": "unknown key; expected one of host, port, path, tls"
    }


def test_names_and_addresses_of_two_processes_differ() -> None:
    origins: dict[KeyPath, Origin] = {("workers", 0, "port"): Origin("config.yaml", 7)}
    result = build(
        {
            "broker": {"port": 9000},
            "workers": [
                {"name": "a", "port": 9001},
                {"name": "a", "port": 9001},
                {"port": 9000},
                {"path": "x"},
                {"path": "./x"},
                {"port": 0},
                {"port": 0},
                {"host": "127.0.0.2", "port": 9001},
                {"name": "worker-8"},
                {"name": "worker-6"},
            ],
        },
        origins,
    )
    assert {problem.key: problem.message for problem in result} == {
        "workers[1].name": "'a' is already the name of workers[0] (by default); choose another",
        "workers[1].port": (
            "port 9001 is already that of workers[0] (config.yaml:7); choose another"
        ),
        "workers[2].port": "port 9000 is already that of broker (by default); choose another",
        "workers[4].path": "this socket is already that of workers[3] (by default); choose another",
        "workers[8].name": (
            "'worker-8' is already the name of workers[7] (by default); choose another"
        ),
        "workers[9].name": (
            "'worker-6' is already the name of workers[5] (by default); choose another"
        ),
    }


def test_all_mistakes_are_found_at_once_and_each_knows_its_line() -> None:
    mapping = {
        "nmae": "x",
        "broker": {"port": 70000},
        "workers": [{"wieght": 2, "port": "a"}],
        "policy": "leastload",
        "tasks": ["missing.py"],
        "logs": {"level": "LOUD", "format": 1},
        "limits": {"queue": -1},
    }
    lines = {"broker": 3, "workers": 4, "policy": 9, "tasks": 10, "logs": 11, "limits": 20}
    origins: dict[KeyPath, Origin] = {(key,): Origin("c.yaml", n) for key, n in lines.items()}
    origins[()] = Origin("c.yaml", 1)
    origins["workers", 0, "port"] = Origin("c.yaml", 6)
    result = build(mapping, origins)
    assert sorted((problem.origin.line, problem.key) for problem in result) == [
        (1, "nmae"),
        (3, "broker.port"),
        (4, "workers[0].wieght"),
        (6, "workers[0].port"),
        (9, "policy"),
        (10, "tasks[0]"),
        (11, "logs.format"),
        (11, "logs.level"),
        (20, "limits.queue"),
    ]
    text = report("c.yaml", result)
    assert text.splitlines()[0] == "c.yaml has 9 mistakes:"
    assert "  c.yaml:3: broker.port: expected a port from 0 to 65535, found 70000" in text


def test_values_of_the_environment_stay_as_they_were_written() -> None:
    path: KeyPath = ("workers", 0, "env", "VERSION")
    origins = {path: Origin("c.yaml", 3, "1.10")}
    topology = build({"workers": [{"env": {"VERSION": 1.1}}]}, origins)
    assert topology.workers[0].env == {"VERSION": "1.10"}


def test_a_report_of_very_many_problems_is_cut() -> None:
    problems = [Problem(Origin("c.yaml", line), "", "bad") for line in range(1000)]
    lines = report("c.yaml", problems).splitlines()
    assert len(lines) < 110
    assert lines[-1] == "  and 900 more"


def test_key_paths_are_spelt_as_people_write_them() -> None:
    assert spell_path(()) == ""
    assert spell_path(("workers", 1, "port")) == "workers[1].port"
    assert spell_path(("workers", 0, "env", "a b\x1b")) == r"workers[0].env.'a b\x1b'"


@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=5))
def test_the_nearest_name_is_one_of_the_names(word: str, names: list[str]) -> None:
    assert nearest_name(word, names) in {None, *names}
