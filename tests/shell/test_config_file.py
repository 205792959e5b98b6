"""Loading a topology from its file: what is read, and every way the file can be wrong."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lbcore.core.errors import ConfigError
from lbcore.core.schema import SECTIONS, WORKER_KEYS
from lbcore.core.topology import Address, WorkerConfig
from lbcore.shell import yaml_reader
from lbcore.shell.config_file import FILE_BYTES_MAX, line_of, load
from lbcore.shell.yaml_reader import VALUES_MAX, read_yaml
from tests.shell.config_helpers import load_text, mistakes

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# the file


def test_the_default_file_is_the_default_topology() -> None:
    topology = load(REPOSITORY / "config.yaml", (), {})
    defaults = load_text("")
    assert topology == replace(defaults, source=str(REPOSITORY / "config.yaml"))


#: a line of the default file that holds a key which is commented out
COMMENTED_KEY = re.compile(
    r"^# (?=(?:policy|tasks|logs|limits|durability):|  (?:  |- )?\w+:)", re.MULTILINE
)
#: what stands in place of something else in the file
ALTERNATIVE = re.compile(
    r"^(?:#   path:|#   tls:|#   workers:|policy: least_load).*\n", re.MULTILINE
)


def test_what_is_commented_out_in_the_default_file_are_the_defaults() -> None:
    text = (REPOSITORY / "config.yaml").read_text(encoding="utf-8")
    everything = COMMENTED_KEY.sub("", ALTERNATIVE.sub("", text))
    written = yaml.safe_load(everything)
    for section in ("policy", "logs", "limits", "durability"):
        assert written[section].keys() == SECTIONS[section].keys()
    assert written["workers"][3].keys() == WORKER_KEYS.keys() - {"host", "path"}
    added, plain = load_text(everything), load_text(text)
    assert added.workers[:3] == plain.workers
    assert added.workers[3] == WorkerConfig(name="worker-4", address=Address(port=9004))
    assert replace(added, workers=()) == replace(plain, workers=())


def test_the_default_file_fits_a_terminal() -> None:
    lines = (REPOSITORY / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 80


def test_loading_the_default_file_is_quick() -> None:
    load(REPOSITORY / "config.yaml", (), {})
    best_s = min(_timed_load() for _ in range(5))
    assert best_s < 0.015


def _timed_load() -> float:
    started = time.perf_counter()
    load(REPOSITORY / "config.yaml", (), {})
    return time.perf_counter() - started


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~", "\ufeffname: lb\n"])
def test_an_empty_file_has_all_defaults(text: str) -> None:
    assert len(load_text(text).workers) == 3


def test_the_source_is_absolute_and_files_are_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "my_tasks.py").write_text("")
    (folder / "t.yaml").write_text("tasks: [my_tasks.py]\n")
    topology = load("deep/t.yaml", (), {})
    assert topology.source == str(folder / "t.yaml")
    assert topology.tasks == (str(folder / "my_tasks.py"),)


def test_a_missing_file_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"^config\.yaml: there is no such file; .*-c FILE$"):
        load("config.yaml", (), {})


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this is a folder"):
        load(tmp_path, (), {})


def test_a_path_that_no_system_has() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load("a\0b", (), {})


def test_a_large_file_is_refused() -> None:
    (line,) = mistakes("#" * (FILE_BYTES_MAX + 1))
    assert line == "config.yaml: larger than 1 MiB; this is no topology"


def test_other_encodings_are_refused_with_the_line() -> None:
    Path("config.yaml").write_bytes("name: lb\n# caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"^config.yaml:2: byte 0xe9 is not UTF-8"):
        load("config.yaml", (), {})


# the text

EVERY_MISTAKE = """\
nmae: demo
broker:
  port: 99999
workers:
  - {name: worker-1, port: 9001}
  - name: worker-1
    port: 9001
    wieght: 2
    concurrency: true
policy: {name: leastload, cpu_weight: .nan}
tasks:
  - my_package.tasks
  - missing.py
limits:
"""


def test_every_mistake_has_its_own_line() -> None:
    assert mistakes(EVERY_MISTAKE) == [
        "config.yaml:1: nmae: unknown key; did you mean `name`?",
        "config.yaml:3: broker.port: expected a port from 0 to 65535, found 99999",
        "config.yaml:6: workers[1].name: 'worker-1' is already the name of workers[0] "
        "(config.yaml:5); choose another",
        "config.yaml:7: workers[1].port: port 9001 is already that of workers[0] "
        "(config.yaml:5); choose another",
        "config.yaml:8: workers[1].wieght: unknown key; did you mean `weight`?",
        "config.yaml:9: workers[1].concurrency: expected a whole number from 1 to 65535, "
        "found true",
        "config.yaml:10: policy.name: found 'leastload'; did you mean `least_load`?",
        "config.yaml:10: policy.cpu_weight: expected a number from 0 to 10, found nan",
        "config.yaml:13: tasks[1]: expected an existing Python file, found 'missing.py'; "
        "the path starts from the YAML's folder",
        "config.yaml:14: limits: expected keys such as `queue:` and `queue_bytes:`, "
        "found nothing; give it keys or remove the line",
    ]


def test_a_key_given_twice_is_reported_with_both_lines_beside_other_mistakes() -> None:
    assert mistakes("broker:\n  port: 1\n  prot: 2\n  port: 3\n") == [
        "config.yaml:3: broker.prot: unknown key; did you mean `port`?",
        "config.yaml:4: broker.port: this key is already given at config.yaml:2; remove one",
    ]


@pytest.mark.parametrize(
    ("text", "start", "part"),
    [
        ("broker: [1, 2\nname: x\n", "config.yaml:2: not valid YAML", "of line 1"),
        ("broker:\n\tport: 1\n", "config.yaml:2: not valid YAML", "spaces, not with tabs"),
        ("name: a: b\n", "config.yaml:1: not valid YAML", "in quotes"),
        ("- a\nb: 1\n", "config.yaml:2: not valid YAML", "check the indentation"),
        ("name: 'x\n", "config.yaml:1: not valid YAML", "end of stream"),
        ("name: @x\n", "config.yaml:1: not valid YAML", "put the value in quotes"),
        ("name: lb\n---\nname: b\n", "config.yaml:2: a second YAML document", "one file"),
        ("name: \x1b[2J\n", "config.yaml:1: found the control character '\\x1b'", "remove it"),
        ("name: lb\n\nx: \x00\n", "config.yaml:3: found the control character '\\x00'", ""),
        ("name: !!python/name:os.system x\n", "config.yaml:1: name: found the tag", "remove it"),
        ("name: !x y\n", "config.yaml:1: name: found the tag '!x'", "only plain values"),
        ("name: *base\n", "config.yaml:1: name: *base has no anchor", "&base"),
        ("workers: &a [*a]\n", "config.yaml:1: workers[0]: *a contains itself", ""),
        ("<<: 3\n", "config.yaml:1: `<<` merges mappings only", ""),
        ("? [a, b]\n: 1\n", "config.yaml:1: a key is a text", ""),
        ("[" * 100_000, "config.yaml:1: ", "nested more than 20 levels"),
        ("name: " + "{a: " * 50 + "}" * 50, "config.yaml:1: name.a: nested more than 20", ""),
        ("- 1\n- 2\n", "config.yaml:1: expected keys such as `broker:`", "found a list"),
        ("just words\n", "config.yaml:1: expected keys", "found 'just words'"),
    ],
)
def test_text_that_is_no_topology(text: str, start: str, part: str) -> None:
    (line,) = mistakes(text)
    assert line.startswith(start)
    assert part in line


def test_without_libyaml_the_same_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "config.yaml").read_text(encoding="utf-8")
    topology, problems = load_text(text), mistakes(EVERY_MISTAKE)
    monkeypatch.setattr(yaml_reader, "LOADER", yaml.SafeLoader)
    assert load_text(text) == topology
    assert mistakes(EVERY_MISTAKE) == problems
    (line,) = mistakes("broker:\n\tport: 1\n")
    assert line.endswith("indent with spaces, not with tabs")


def test_aliases_cannot_make_a_small_file_large() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)
    ]
    (line,) = mistakes("\n".join(lines))
    assert f"more than {VALUES_MAX} values" in line


def test_merges_cannot_either() -> None:
    base = ", ".join(f"k{index}: 1" for index in range(1000))
    merges = ", ".join(["*base"] * 1000)
    (line,) = mistakes(f"base: &base {{{base}}}\nname: {{<<: [{merges}]}}\n")
    assert f"more than {VALUES_MAX} values" in line


def test_anchors_aliases_and_merges_work() -> None:
    topology = load_text(
        "workers:\n"
        "  - &base {name: a, port: 9001, weight: 2, env: {A: &text '1'}}\n"
        "  - {<<: *base, name: b, port: 9002}\n"
        "  - {<<: [{nice: 5}, *base], name: c, port: 9003, env: {B: *text}}\n"
    )
    assert [worker.name for worker in topology.workers] == ["a", "b", "c"]
    assert [worker.weight for worker in topology.workers] == [2, 2, 2]
    assert topology.workers[1].env == {"A": "1"}
    assert topology.workers[2].env == {"B": "1"}
    assert topology.workers[2].nice == 5


def test_scalars_mean_what_they_look_like() -> None:
    document = read_yaml(
        "[no, on, yes, true, 010, 0o10, 0x10, 12:30, 1_000, 1e3, .5, -7, 2026-11-23, ~, '7', 1.10]",
        "t",
    )
    assert document.value == [
        *("no", "on", "yes", True, "010", "0o10", "0x10", "12:30"),
        *(1000, 1000.0, 0.5, -7, "2026-11-23", None, "7", 1.1),
    ]
    long = read_yaml("9" * 10_000, "t").value
    assert isinstance(long, str)


def test_names_that_other_readers_take_for_truth_values() -> None:
    (worker,) = load_text("workers: [{name: no, tags: [on, off], env: {A: yes, B: 1.10}}]").workers
    assert worker.name == "no"
    assert worker.tags == ("on", "off")
    assert worker.env == {"A": "yes", "B": "1.10"}


def test_many_workers_load_in_bounded_time() -> None:
    workers = [{"name": f"w{index}", "weight": 1, "tags": ["a"]} for index in range(4096)]
    topology = load_text(json.dumps({"workers": workers}))
    assert len(topology.workers) == 4096


# where keys are


def test_the_line_of_a_key_is_that_of_the_nearest_section_written() -> None:
    Path("config.yaml").write_text("broker:\n  port: 1\nworkers:\n  count: 3\n")
    assert line_of("config.yaml", ("broker", "port")) == 2
    assert line_of("config.yaml", ("broker", "host")) == 1
    assert line_of("config.yaml", ("workers", 2, "port")) == 3
    assert line_of("config.yaml", ("limits", "queue")) is None
    assert line_of("missing.yaml", ("broker",)) is None
