"""Whatever a file, a variable or a flag holds: it is a topology, or a ConfigError; nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lbcore.core.config import describe_topology
from lbcore.core.topology import Topology
from tests.shell.config_helpers import is_report, load_text, outcome

#: one file for all the texts of a test that generates many
any_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


YAML_LIKE = st.lists(
    st.sampled_from(
        [*"[]{}:,-?&*!|>'\"%@`#~\n\t ", ": ", "- ", "\n  ", "\n    ", "<<: ", "&a ", "*a"]
    )
    | st.sampled_from(["broker", "workers", "count", "port", "name", "policy", "1", "x", "\x00"])
    | st.text(max_size=3),
    max_size=40,
).map("".join)


@any_file
@given(YAML_LIKE)
@example("&a [*a]")
@example("a: &a {<<: *a}")
@example("? \n? ")
@example("!!binary x")
@example("\ud800")
def test_any_text_is_a_topology_or_a_config_error(text: str) -> None:
    Path("config.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    result = outcome()
    assert isinstance(result, Topology) or is_report(result)


@any_file
@given(st.binary(max_size=200))
def test_any_bytes_are_a_topology_or_a_config_error(content: bytes) -> None:
    Path("config.yaml").write_bytes(content)
    result = outcome()
    assert isinstance(result, Topology) or is_report(result)


KEY_LIKE = st.lists(
    st.sampled_from(
        [
            "broker",
            "port",
            "path",
            "workers",
            "worker-1",
            "0",
            "[1]",
            "env",
            "count",
            "policy",
            "name",
            "tasks",
            "weight",
            ".",
            "[",
            "]",
            "limits",
            "queue",
            "version",
            "A",
        ]
    ),
    max_size=5,
).map(".".join)
VALUE_LIKE = st.sampled_from(
    ["", "1", "x", "[1, 2]", "{a: 1}", "{count: 2}", "{name: w}", "null", "&a", "*a", "4", "random"]
)
FILE_LIKE = st.sampled_from(
    [
        "",
        "workers: 2",
        "workers: {count: 2, env: {A: 1}}",
        "workers: {count: x}",
        "workers: {a: {}}",
        "workers: [1, {}]",
        "workers: [{env: 1}, {name: 1}]",
        "workers: []",
        "workers: x",
        "workers:",
        "policy: random",
        "policy: []",
        "broker: {path: x}",
        "broker: 1",
        "logs: x",
        "- 1",
        "",
    ]
)


@any_file
@given(
    FILE_LIKE,
    st.lists(st.tuples(KEY_LIKE | st.text(max_size=8), VALUE_LIKE).map("=".join), max_size=4),
    st.dictionaries(
        KEY_LIKE.map(lambda key: "LB_" + key.replace(".", "__").replace("-", "_").upper()),
        VALUE_LIKE,
        max_size=3,
    ),
)
def test_any_overrides_give_a_topology_or_a_config_error(
    text: str, flags: list[str], environ: dict[str, str]
) -> None:
    Path("config.yaml").write_text(text)
    result = outcome(flags, environ)
    if isinstance(result, Topology):
        assert load_text(yaml.safe_dump(describe_topology(result))) == result
    else:
        assert is_report(result)
