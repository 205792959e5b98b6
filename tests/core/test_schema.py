"""The table of keys, and the page that explains them to people: they say the same."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lbcore.core.config import build_topology
from lbcore.core.overrides import OTHER_VARIABLES
from lbcore.core.schema import (
    POLICIES,
    SECTIONS,
    SHORT_WORKERS_KEYS,
    TASKS,
    TOP_KEYS,
    TOPOLOGY_KEYS,
    WORKER_KEYS,
    sections_with,
)
from lbcore.core.topology import Limits, LogsConfig, PolicyConfig, Topology, WorkerConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "topology.md"

#: key -> (default, takes)
Rows = dict[str, tuple[str, str]]


def documented() -> dict[str, Rows]:
    """The tables of keys in the page, by the heading above each."""
    tables: dict[str, Rows] = {}
    heading = ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("### "):
            heading = line[4:].strip("`")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            heading = ""
        if line.startswith("| `") and len(cells) == 5 and heading:
            tables.setdefault(heading, {})[cells[0].strip("`")] = (cells[2], cells[4])
    return tables


def test_every_key_is_in_the_page_and_nothing_else() -> None:
    keys = {heading: set(rows) for heading, rows in documented().items()}
    assert keys == {
        "Top level": set(TOPOLOGY_KEYS),
        "workers": {*WORKER_KEYS, "count"},
        **{section: set(table) for section, table in SECTIONS.items()},
    }
    # as the page says of the short form
    assert SHORT_WORKERS_KEYS.keys() == keys["workers"] - {"name", "port", "path"}


def test_the_page_says_what_each_key_takes() -> None:
    tables = documented()
    readers = {**SECTIONS, "workers": {**WORKER_KEYS, **SHORT_WORKERS_KEYS}}
    for section, table in readers.items():
        for key, reader in table.items():
            assert tables[section][key][1] == reader.expected, f"{section}.{key}"
    for key, reader in TOP_KEYS.items():
        assert tables["Top level"][key][1] == reader.expected
    assert tables["Top level"]["tasks"][1] == TASKS.expected


def default_topology() -> Topology:
    topology = build_topology({}, {}, source="/x/c.yaml", cores=1, file_exists=lambda _: False)
    assert isinstance(topology, Topology)
    return topology


def built(section: str, key: str, text: str) -> Any:
    """The value that a default of the page stands for, read as the file's would be."""
    value: Any = text.strip("`")
    if re.fullmatch(r"\d+", value):
        value = int(value)
    value = {"true": True, "false": False}.get(value, value)
    result = build_topology(
        {section: {key: value}}, {}, source="/x/c.yaml", cores=1, file_exists=lambda _: False
    )
    assert isinstance(result, Topology)
    return getattr(getattr(result, section), key)


@pytest.mark.parametrize(
    ("section", "defaults"),
    [("policy", PolicyConfig()), ("logs", LogsConfig()), ("limits", Limits())],
)
def test_the_page_has_the_defaults_of_sections(
    section: str, defaults: PolicyConfig | LogsConfig | Limits
) -> None:
    rows = documented()[section]
    expected = asdict(defaults)
    assert {key: built(section, key, rows[key][0]) for key in rows} == expected


def test_the_page_has_the_defaults_of_processes() -> None:
    tables, topology = documented(), default_topology()
    broker, worker = tables["broker"], tables["workers"]
    assert broker["host"][0] == f"`{topology.broker.host}`"
    assert broker["port"][0] == f"`{topology.broker.port}`"
    assert tables["Top level"]["name"][0] == f"`{topology.name}`"
    assert tables["Top level"]["policy"][0] == f"`{topology.policy.name}`"
    defaults = WorkerConfig(name="x")
    assert worker["host"][0] == f"`{defaults.address.host}`"
    assert worker["port"][0] == f"`{defaults.address.port}`"
    for key in ("weight", "concurrency", "nice"):
        assert worker[key][0] == f"`{getattr(defaults, key):g}`"
    assert (defaults.cpus, defaults.tags, defaults.env) == ((), (), {})
    assert [worker[key][0] for key in ("cpus", "tags", "env")] == ["`[]`", "`[]`", "`{}`"]


def test_the_page_names_every_policy_and_every_variable() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in (*POLICIES, *OTHER_VARIABLES):
        assert f"| `{name}` |" in text


def test_sections_with() -> None:
    assert sections_with("port") == ("broker", "workers")
    assert sections_with("level") == ("logs", "durability")
    assert sections_with("count") == ("workers",)
    assert sections_with("tasks") == ("the top level",)
    assert sections_with("nothing") == ()
