"""The documentation is true: its commands exist, its links lead somewhere, its figures are right.

``test_readme.py`` runs what the README shows.
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml

from lbcore.bootstrap import CLONE_COMMANDS
from lbcore.cli.main import COMMANDS, cli
from lbcore.core.frames import Kind
from lbcore.shell.config_file import load
from tests.test_tidy import FOREIGN_PLACES

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
PAGES += [REPOSITORY / "bench" / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CORE = REPOSITORY / "lbcore" / "core"


class Block(NamedTuple):
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    language: str | None = None
    held: list[str] = []
    begin = 0
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if not line.startswith("```"):
            held.append(line)
        elif language is None:
            language, held, begin = line[3:], [], number + 1
        else:
            blocks.append(Block(page, begin, language, "\n".join(held) + "\n"))
            language = None
    assert language is None, f"{page}: a block without an end"
    return blocks


BLOCKS = {page: blocks_of(page) for page in PAGES}


def text_without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


# ---- commands ----------------------------------------------------------------------------------


class Command(NamedTuple):
    """One use of ``lb`` in a page."""

    place: str
    words: list[str]


def words_of(line: str) -> list[str] | None:
    """The words behind ``lb`` or ``python lb.py``; None when the line is something else."""
    line = line.strip().removeprefix("$ ")
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    for start in (["lb"], ["python", "lb.py"]):
        if words[: len(start)] == start:
            words = words[len(start) :]
            break
    else:
        return None
    end = next((at for at, word in enumerate(words) if set(word) <= set("|&;")), len(words))
    return words[:end]


def commands_of(page: Path) -> Iterator[Command]:
    """Every command line in a block without a language, and every one between backquotes."""
    for block in BLOCKS[page]:
        if block.language in ("", "console", "sh"):
            for number, line in enumerate(block.text.splitlines(), block.line):
                # two spaces and words that explain, as in a list of commands
                words = words_of(re.split(r"\s{2,}(?=[a-z#])", line.strip())[0])
                if words is not None:
                    yield Command(f"{page.name}:{number}", words)
    for match in re.finditer(r"`([^`\n]+)`", text_without_blocks(page)):
        words = words_of(match[1])
        if words is not None:
            yield Command(f"{page.name}: `{match[1]}`", words)


COMMAND_LINES = [command for page in PAGES for command in commands_of(page)]


def test_there_are_commands_to_check() -> None:
    used = {command.words[0] for command in COMMAND_LINES if command.words}
    assert set(COMMANDS) <= used
    assert len(COMMAND_LINES) > 100


@pytest.mark.parametrize("command", COMMAND_LINES, ids=lambda command: str(command.place))
def test_the_command_exists_with_these_options(command: Command) -> None:
    words = command.words
    if not words or words[0] in ("COMMAND", "--help", "--version", *CLONE_COMMANDS):
        return
    context = click.Context(cli, info_name="lb")
    assert words[0] in COMMANDS, f"{command.place}: no command {words[0]!r}"
    found = cli.get_command(context, words[0])
    assert found is not None
    if any(re.search(r"…|\.\.\.|\[|^[A-Z]+$", word) for word in words[1:]):
        # a form with placeholders: only the options can be checked
        known = {name for option in found.get_params(context) for name in option.opts}
        given = {word for word in words[1:] if word.startswith("-")}
        assert given <= known | {"--help"}, command.place
        return
    with suppress(click.exceptions.Exit):  # of --help
        found.make_context(words[0], words[1:], parent=context)


def test_a_wrong_command_is_seen() -> None:
    with pytest.raises(click.NoSuchOption):
        test_the_command_exists_with_these_options(Command("x", ["up", "--detached"]))
    with pytest.raises(AssertionError, match="no command 'top'"):
        test_the_command_exists_with_these_options(Command("x", ["top"]))
    assert words_of("$ LB_BROKER__PORT=1 python lb.py up -d & wait") == ["up", "-d"]
    assert words_of("kill -9 PID") is None


def test_the_readme_lists_every_command_in_order() -> None:
    table = README.read_text().partition("\n## Commands\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(COMMANDS)


# ---- links and words ---------------------------------------------------------------------------


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made where such pages are shown."""
    headings = re.findall(r"^#+ (.+)$", text_without_blocks(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_without_blocks(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert file.is_relative_to(REPOSITORY), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_is_named_exists(page: Path) -> None:
    """Between backquotes: paths of the repository, from its top or from ``lbcore/``."""
    for name in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|md|json|yaml))`", text_without_blocks(page)):
        places = (REPOSITORY / name, REPOSITORY / "lbcore" / name)
        assert any(place.exists() for place in places), f"{page.name}: {name}"


def test_no_page_and_no_picture_names_a_place_of_one_machine() -> None:
    pictures = sorted((REPOSITORY / "docs").rglob("*.svg"))
    assert pictures
    for page in (*PAGES, *pictures):
        found = FOREIGN_PLACES.search(page.read_text())
        assert found is None, f"{page.name}: {found}"


def test_the_readme_fits_80_columns() -> None:
    lines = README.read_text().splitlines()
    assert not [line for line in lines if len(line) > 80 and not line.startswith("|")]


def test_the_readme_has_room_for_the_figures() -> None:
    text = README.read_text()
    assert text.index("\n<!-- figures -->\n") < text.index("\n<!-- /figures -->\n")


# ---- what the pages say of the code ------------------------------------------------------------


def functions_in(file: Path) -> set[str]:
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_steps_of_a_request_are_in_the_files() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    steps = re.findall(r"^\| \d+ \| `([\w/.]+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert len(steps) > 10
    for file, function in steps:
        assert function in functions_in(REPOSITORY / "lbcore" / file), f"{file} has no {function}"


def test_methods_that_are_named_exist() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    for owner, method in re.findall(r"`(Broker|Ledger|Fleet)\.(\w+)(?:\(\))?`", text):
        cls = getattr(importlib.import_module(f"lbcore.core.{owner.lower()}"), owner)
        assert hasattr(cls, method), f"{owner}.{method}"


def test_the_rows_of_core_are_its_import_order() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    (picture,) = re.findall(r"in a row below it:\n\n```\n(.*?)```", text, re.DOTALL)
    rows = {name: row for row, line in enumerate(picture.splitlines()) for name in line.split()}
    modules = {path.stem if path.is_file() else path.name for path in CORE.iterdir()}
    assert rows.keys() == {name for name in modules if not name.startswith("__")}
    for file in CORE.rglob("*.py"):
        inside = file.relative_to(CORE).parts
        module = inside[0].removesuffix(".py")
        if module == "__init__":
            continue
        for name in imported_core_modules(file, level_of_core=len(inside)):
            lower = name == module or rows[name] > rows[module]
            assert lower, f"core/{module} imports {name}, which does not stand below it"


def imported_core_modules(file: Path, level_of_core: int) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.level == level_of_core:
            yield node.module.split(".")[0]
        elif node.level == 0 and node.module.startswith("lbcore.core."):
            yield node.module.split(".")[2]


def test_the_constants_of_balancing_are_those_of_the_code() -> None:
    text = (REPOSITORY / "docs" / "balancing.md").read_text()
    rows = re.findall(r"^\| `([\w.]+)\.([A-Z_]+)` \| ([\d.]+) \|", text, re.MULTILINE)
    assert len(rows) > 20
    for module, name, value in rows:
        known = getattr(importlib.import_module(f"lbcore.core.{module}"), name)
        assert float(value) == known, f"{module}.{name} is {known}"


def test_the_figures_in_the_text_of_balancing_are_the_constants() -> None:
    """The sentences that repeat a constant in other words."""
    text = " ".join((REPOSITORY / "docs" / "balancing.md").read_text().split())
    costs, dispatch, fleet, rebalance, journal, least_load = (
        importlib.import_module(f"lbcore.core.{name}")
        for name in ("costs", "dispatch", "fleet", "rebalance", "journal", "policies.least_load")
    )
    for sentence in (
        f"Within {least_load.TIE_BAND:.0%} loads are equal",
        f"and then {costs.COST_RATE:.0%}, less for tasks whose times vary "
        f"(down to {costs.COST_RATE_MIN:.0%})",
        f"a step of {costs.SPEED_RATE:.0%} divided by",
        f"once a task has had {fleet.LEARN_ALL}",
        f"and every {dispatch.HOLD_CHECK_S * 1000:g} ms",
        f"(up to {dispatch.HELD_MAX} held requests)",
        f"below {dispatch.HOLD_COST_S * 1000:g} ms are not held",
        f"runs worth {dispatch.RUN_S * 1000:g} ms, at most {dispatch.RUN_MAX},",
        f"| {fleet.PREFETCH_COST_RATIO:g} times the way",
        f"at least 1, at most {fleet.PREFETCH_MAX} |",
        f"Until a worker has had {fleet.WARM_UP} successes",
        f"and at least {rebalance.STALL_MIN_S * 1000:g} ms.",
        f"the last {journal.DECISIONS_KEPT:,} choices (fewer in large fleets: "
        f"{journal.VIEWS_KEPT:,} rows",
        f"in fleets of at most {journal.RECORD_WORKERS_MAX} workers also every one for tasks of "
        f"{journal.RECORD_COST_S * 1000:g} ms or more, and one every {journal.RECORD_EVERY_S:g} s",
    ):
        assert sentence in text, sentence


def test_the_protocol_page_is_complete() -> None:
    """More of it is in ``tests/core/test_protocol_vectors.py`` and ``test_protocol_sockets.py``."""
    text = (REPOSITORY / "docs" / "protocol.md").read_text()
    assert all(f"| {kind.value} | {kind.name} | " in text for kind in Kind)


# ---- what the pages tell people to write -------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES for block in BLOCKS[page] if block.language == "python"],
    ids=lambda block: str(block.place),
)
def test_python_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec")


TOPOLOGIES = [
    block
    for page in PAGES
    for block in BLOCKS[page]
    if block.language == "yaml" and not block.text.startswith(" ")
]


@pytest.mark.parametrize("block", TOPOLOGIES, ids=lambda block: str(block.place))
def test_topologies_are_right(block: Block, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    # this machine may have fewer cores
    config.write_text(re.sub(r"cpus: \[\d\]", "cpus: [0]", block.text))
    mapping = yaml.safe_load(block.text)
    broker = mapping.get("broker")
    files = list(broker.get("tls", {}).values() if isinstance(broker, dict) else ())
    policy = mapping.get("policy")
    if isinstance(policy, str) and ".py:" in policy:
        files.append(policy.partition(":")[0])
    for name in (*mapping.get("tasks", ()), *files):
        (tmp_path / name).touch()
    load(config, environ={})
