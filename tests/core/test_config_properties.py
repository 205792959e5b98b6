"""Any topology is what its description builds; any value is a topology or a list of problems."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.config import build_topology, describe_topology
from lbcore.core.schema import LEVELS, POLICIES
from lbcore.core.topology import Address, Limits, LogsConfig, PolicyConfig, Topology, WorkerConfig

SOURCE = "/home-of/lb/config.yaml"
FILES = ("/home-of/lb/my_tasks.py", "/elsewhere/other.py")
CORES = 8


def build(mapping: object) -> Any:
    """The topology, or the list of problems."""
    return build_topology(mapping, {}, source=SOURCE, cores=CORES, file_exists=FILES.__contains__)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
VARIABLES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
PRINTABLE = st.text(st.characters(min_codepoint=32, exclude_categories=["C"]), min_size=1)
PLAIN_CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
HOSTS = st.sampled_from(["127.0.0.1", "127.3.2.1", "::1"])


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    if draw(st.booleans()):
        # never one of the paths that another process draws
        name = draw(st.uuids())
        return Address(path=f"/run/{name}.sock")
    return Address(host=draw(HOSTS), port=draw(st.integers(0, 65535)))


@st.composite
def workers(draw: st.DrawFn) -> tuple[WorkerConfig, ...]:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique_by=str.lower))
    return tuple(
        WorkerConfig(
            name="w" + name,
            address=draw(addresses()),
            weight=draw(st.floats(0.001, 1000)),
            concurrency=draw(st.integers(1, 65535)),
            cpus=tuple(draw(st.lists(st.integers(0, CORES - 1), unique=True))),
            nice=draw(st.integers(-20, 19)),
            tags=tuple(draw(st.lists(PRINTABLE.filter(lambda text: len(text) <= 64), unique=True))),
            env=draw(st.dictionaries(VARIABLES, st.text(PLAIN_CHARACTERS), max_size=3)),
        )
        for name in names
    )


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    topology = Topology(
        name=draw(NAMES),
        broker=draw(addresses()),
        workers=draw(workers()),
        policy=PolicyConfig(
            name=draw(st.sampled_from(POLICIES)),
            pending_weight=draw(st.floats(0, 1000)),
            cpu_weight=draw(st.floats(0, 10)),
        ),
        tasks=tuple(draw(st.lists(st.sampled_from([*FILES, "a", "b.c"]), unique=True))),
        logs=LogsConfig(
            folder=draw(PRINTABLE.filter(lambda text: text.strip() and text[0] != "~")),
            level=draw(st.sampled_from(LEVELS)),
            rotation=draw(st.sampled_from(["10 MB", "1 day", "hourly", "never"])),
            retention=draw(st.sampled_from(["0", "5", "7 days", "forever"])),
            format=draw(st.sampled_from(["text", "json"])),
        ),
        limits=Limits(
            queue=draw(st.integers(1, 10**9)),
            queue_bytes=draw(st.integers(1024, 1 << 40)),
            frame_bytes=draw(st.integers(1024, (1 << 32) - 1)),
            connections=draw(st.integers(1, 10**6)),
            max_attempts=draw(st.integers(1, 1000)),
            drain_s=draw(st.floats(0, 86400)),
            cancel_grace_s=draw(st.floats(0, 86400)),
            worker_memory=draw(st.just(0) | st.integers(1 << 20, 1 << 44)),
        ),
        source=SOURCE,
    )
    # two processes cannot have one port: a later one takes a free port instead
    taken: set[str] = {str(topology.broker)}
    distinct: list[WorkerConfig] = []
    for worker in topology.workers:
        again = str(worker.address) in taken
        distinct.append(replace(worker, address=Address()) if again else worker)
        taken.add(str(worker.address))
    return replace(topology, workers=tuple(distinct))


@given(topologies())
def test_every_topology_is_what_its_description_builds(topology: Topology) -> None:
    assert build(describe_topology(topology)) == topology


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["127.0.0.1", "least_load", "worker-1", "INFO", "1 MB", 9001, 1, 4])
)
KNOWN_KEYS = [
    *("version", "name", "broker", "workers", "policy", "tasks", "logs", "limits"),
    *("host", "port", "path", "weight", "concurrency", "cpus", "nice", "tags", "env", "count"),
    *("pending_weight", "cpu_weight", "folder", "level", "rotation", "retention", "format"),
    *("queue", "queue_bytes", "frame_bytes", "connections", "max_attempts", "drain_s"),
]
KEYS = st.sampled_from(KNOWN_KEYS) | st.text(max_size=6) | st.integers() | st.none()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)


@given(VALUES)
def test_any_value_is_a_topology_or_problems(value: object) -> None:
    result = build(value)
    if isinstance(result, Topology):
        assert build(describe_topology(result)) == result
    else:
        assert result
        assert all(str(problem).isprintable() for problem in result)


@given(st.dictionaries(st.sampled_from(KNOWN_KEYS[:8]), VALUES))
def test_any_values_under_the_right_sections_too(value: object) -> None:
    result = build(value)
    assert isinstance(result, Topology) or all(str(problem).isprintable() for problem in result)
