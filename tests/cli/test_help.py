"""Every command's help fits a terminal and has examples, and docs/commands.md says the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from lbcore.cli.exit_codes import ExitCode
from lbcore.cli.main import COMMANDS, cli

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "commands.md"


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def help_text(name: str) -> str:
    context = click.Context(cli, info_name="python lb.py", max_content_width=80)
    with click.Context(command(name), info_name=name, parent=context) as own:
        return own.get_help()


def options(name: str) -> dict[str, click.Option]:
    """Every spelling of every option of a command."""
    return {
        spelling: parameter
        for parameter in command(name).params
        if isinstance(parameter, click.Option)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }


def section(name: str) -> str:
    """The part of the page about a command."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]


def documented_options(name: str) -> dict[str, str]:
    """Every spelling in the table of options -> what its row says."""
    rows = re.findall(r"^\| ((?:`-[^|]+`(?:, )?)+) \| (.+) \|$", section(name), re.MULTILINE)
    return {spelling: text for cell, text in rows for spelling in re.findall(r"`([^`]+)`", cell)}


def example_lines(text: str) -> list[str]:
    """The command lines in a text, without what is piped behind them."""
    lines = re.findall(r"^ *((?:python lb\.py|lb) .+)$", text, re.MULTILINE)
    return [re.split(r"\s{2,}| \| ", line)[0] for line in lines]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_name_of_the_command_is_that_of_the_table(name: str) -> None:
    assert command(name).name == name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_80_columns_and_has_an_example(name: str) -> None:
    text = help_text(name)
    assert max(map(len, text.splitlines())) <= 80
    assert "Example" in text
    assert example_lines(text)
    assert "Exit code" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name: str) -> None:
    assert all(option.help for option in options(name).values())


def test_the_page_lists_the_commands_as_the_help_does() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert rows[: len(COMMANDS)] == [(name, entry.help) for name, entry in COMMANDS.items()]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_exactly_the_options_of_the_command(name: str) -> None:
    assert set(documented_options(name)) == set(options(name)) - {"-h", "--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_has_the_defaults_of_the_command(name: str) -> None:
    for spelling, text in documented_options(name).items():
        option = options(name)[spelling]
        if option.show_default and not isinstance(option.show_default, str):
            assert re.search(rf"default `?{re.escape(str(option.default))}`?", text), spelling


def test_the_page_has_the_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == sorted(ExitCode)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_use_only_what_exists(name: str) -> None:
    for line in example_lines(help_text(name)) + example_lines(section(name)):
        words = shlex.split(line)
        used = words[words.index("lb" if words[0] == "lb" else "lb.py") + 1 :]
        if used == ["--version"]:
            continue
        assert used[0] in COMMANDS, line
        if used[0] in ("bench", "test"):
            continue
        known = options(used[0])
        for word in used[1:]:
            if re.match(r"-[a-z-]", word):
                assert word in known, line
