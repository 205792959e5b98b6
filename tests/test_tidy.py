"""The rules of the house, held by reading the source: layers, purity, sizes, prints, docstrings.

Each rule takes one file and returns what breaks it.  Each is also fed a bad snippet below, because
a rule that cannot fail holds nothing.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

#: layer -> what it may import of lbcore; "root" is what stands directly in the package's folder
LAYERS = {
    "core": {"core"},
    "shell": {"shell", "core"},
    "sim": {"sim", "core"},
    "lab": {"lab", "sim", "core"},
    "cli": {"cli", "shell", "sim", "lab", "core", "root"},
    # the bootstrap runs before any dependency is there: it imports a layer only inside a function
    "root": {"root"},
}
#: what every layer may have of the package itself: `import lbcore` (for its folder), and these
ROOT_NAMES_OF_ALL = {"", "__version__"}

#: modules that do I/O, know the time, or are not deterministic
IMPURE_MODULES = {
    "asyncio",
    "logging",
    "loguru",
    "multiprocessing",
    "os",
    "psutil",
    "random",
    "select",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "uvloop",
    "yaml",
}
IMPURE_CALLS = {"open", "print"}

#: modules that print for people besides cli/: they run before anything else can
PRINTING_ROOT_MODULES = {"bootstrap.py", "environment.py"}

#: places that exist on one machine only; written so that this file does not break its own rule
FOREIGN_PLACES = re.compile(
    r"(?<![\w.~-])/wor[k]/|/tmp/[x]\b|(?<![\w.~-])/roo[t]/|/hom[e]/\w"
    r"|\bshare[d]/[A-Z]+\.md|pypi\.or[g]|pythonhosted\.or[g]|npmjs\.or[g]|debian\.or[g]"
)
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".lock", ".json", ".txt", ".cfg", ".sh"}
TEXT_FOLDERS = ("lbcore", "tests", "bench", "docs", "examples", ".ci")


@dataclass(frozen=True)
class Source:
    """One file, by its path from the top of the repository."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, self.path)

    @property
    def layer(self) -> str | None:
        """The layer it belongs to; None outside the package."""
        parts = PurePosixPath(self.path).parts
        if parts[0] != "lbcore":
            return None
        return parts[1] if len(parts) > 2 else "root"

    @property
    def package(self) -> list[str]:
        """The dotted package that its relative imports start from."""
        return list(PurePosixPath(self.path).parts[:-1])

    def broken(self, line: int, what: str) -> str:
        """One breach, as an editor can jump to it."""
        return f"{self.path}:{line}: {what}"


Rule = Callable[[Source], Iterator[str]]


def imported_names(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Every import as ``(statement, dotted name)``; relative ones made absolute."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = source.package[: len(source.package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node, f"{base}.{alias.name}"


def layer_of_import(name: str) -> str | None:
    """The layer that an absolute dotted name reaches; None where every layer may have it."""
    package, _, rest = name.partition(".")
    if package != "lbcore" or rest in ROOT_NAMES_OF_ALL:
        return None
    first = rest.partition(".")[0]
    if first in LAYERS:
        return first
    # `from lbcore import Client`: lbcore/__init__.py fetches it from the shell
    is_module = (REPOSITORY / "lbcore" / f"{first}.py").exists()
    return "root" if is_module else "shell"


def statements_at_import(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """What runs when the module is imported: not in a function, not for type checkers only."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from statements_at_import(list(ast.iter_child_nodes(node)))


def import_direction(source: Source) -> Iterator[str]:
    """cli -> shell | sim -> core; shell and sim never meet."""
    if source.layer is None:
        return
    at_import = set(statements_at_import(source.tree.body))
    for node, name in imported_names(source):
        if source.layer == "root":
            if node not in at_import:
                continue
            top = name.partition(".")[0]
            if top != "lbcore" and top not in sys.stdlib_module_names:
                yield source.broken(node.lineno, f"imports {top} before it is known to be there")
        layer = layer_of_import(name)
        if layer is not None and layer not in LAYERS[source.layer]:
            yield source.broken(node.lineno, f"{source.layer} imports {name} of {layer}")


def core_is_pure(source: Source) -> Iterator[str]:
    """core/ has no I/O, no clock, no chance."""
    if source.layer != "core":
        return
    for node, name in imported_names(source):
        if name.partition(".")[0] in IMPURE_MODULES:
            yield source.broken(node.lineno, f"core imports {name}")
    for call, name in plain_calls(source):
        if name in IMPURE_CALLS:
            yield source.broken(call.lineno, f"core calls {name}()")


def plain_calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    """Every call of a plain name."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node, node.func.id


def only_cli_prints(source: Source) -> Iterator[str]:
    """``print`` is for people, and people are talked to in cli/."""
    if source.layer in (None, "cli") or PurePosixPath(source.path).name in PRINTING_ROOT_MODULES:
        return
    for call, name in plain_calls(source):
        if name == "print":
            yield source.broken(call.lineno, "print() outside of cli/")


def sizes(source: Source) -> Iterator[str]:
    """What one person can hold at once."""
    lines = source.text.count("\n")
    if lines > MODULE_LINES_MAX:
        yield source.broken(MODULE_LINES_MAX, f"{lines} lines; at most {MODULE_LINES_MAX}")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            count = (node.end_lineno or node.lineno) - node.lineno + 1
            if count > FUNCTION_LINES_MAX:
                what = f"{node.name} has {count} lines; at most {FUNCTION_LINES_MAX}"
                yield source.broken(node.lineno, what)


def has_docstring(source: Source) -> Iterator[str]:
    """A public module says what it is."""
    name = PurePosixPath(source.path).name
    public = not name.startswith("_") or name in ("__init__.py", "__main__.py")
    if public and not ast.get_docstring(source.tree):
        yield source.broken(1, "no docstring")


def no_foreign_places(source: Source) -> Iterator[str]:
    """Nothing names a folder or a host of the machine that it was written on."""
    for number, line in enumerate(source.text.splitlines(), 1):
        for match in FOREIGN_PLACES.finditer(line):
            yield source.broken(number, f"names {match[0]!r}")


MODULE_RULES: list[Rule] = [import_direction, core_is_pure, only_cli_prints, sizes, has_docstring]


def find_texts() -> list[Source]:
    """Every file that a person wrote, or a tool for the repository."""
    paths = [path for path in REPOSITORY.iterdir() if path.is_file()]
    for folder in TEXT_FOLDERS:
        paths += (path for path in (REPOSITORY / folder).rglob("*") if path.is_file())
    return [
        Source(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(paths)
        if path.suffix in TEXT_SUFFIXES or path.parent.name == ".ci"
    ]


TEXTS = find_texts()
MODULES = [source for source in TEXTS if source.path.endswith(".py")]


@pytest.mark.parametrize("rule", MODULE_RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps(rule: Rule) -> None:
    broken = [breach for source in MODULES for breach in rule(source)]
    assert not broken, "\n" + "\n".join(broken)


def test_every_text_keeps_to_the_repository() -> None:
    broken = [breach for source in TEXTS for breach in no_foreign_places(source)]
    assert not broken, "\n" + "\n".join(broken)


def test_rules_see_the_whole_tree() -> None:
    paths = {source.path for source in TEXTS}
    assert {"lb.py", "lbcore/bootstrap.py", "lbcore/core/errors.py", ".ci/run"} <= paths
    assert {"core", "shell", "cli", "root"} <= {source.layer for source in MODULES if source.layer}


def lines(count: int, line: str = "x = 1\n") -> str:
    return line * count


#: rule, path, text, the line it must point at (None: the text keeps the rule)
SNIPPETS: list[tuple[Rule, str, str, int | None]] = [
    (import_direction, "lbcore/core/a.py", "from lbcore.shell import logs", 1),
    (import_direction, "lbcore/core/a.py", "\nfrom ..shell.logs import x", 2),
    (import_direction, "lbcore/core/policies/a.py", "from ...cli import main", 1),
    (import_direction, "lbcore/core/policies/a.py", "from ..errors import LBError", None),
    (import_direction, "lbcore/core/a.py", "def f():\n    import lbcore.cli.main", 2),
    (import_direction, "lbcore/core/a.py", "from lbcore import Client", 1),
    (import_direction, "lbcore/core/a.py", "from lbcore import __version__", None),
    (import_direction, "lbcore/core/a.py", "from . import errors", None),
    (import_direction, "lbcore/shell/a.py", "import lbcore", None),
    (import_direction, "lbcore/shell/a.py", "from .. import bootstrap", 1),
    (import_direction, "lbcore/shell/a.py", "from .. import sim", 1),
    (import_direction, "lbcore/shell/a.py", "from lbcore.cli.main import main", 1),
    (import_direction, "lbcore/shell/a.py", "from lbcore.core import errors", None),
    (import_direction, "lbcore/sim/a.py", "from lbcore.shell import cpu", 1),
    (import_direction, "lbcore/sim/a.py", "import lbcore.core.broker", None),
    (import_direction, "lbcore/cli/a.py", "from lbcore.shell import cpu", None),
    (import_direction, "lbcore/bootstrap.py", "import click", 1),
    (import_direction, "lbcore/bootstrap.py", "class A:\n    with x:\n        import click", 3),
    (import_direction, "lbcore/a.py", "if TYPE_CHECKING:\n    from .shell import tasks", None),
    (import_direction, "lbcore/bootstrap.py", "from lbcore.cli.main import main", 1),
    (import_direction, "lbcore/bootstrap.py", "def f():\n    from lbcore.cli import main", None),
    (import_direction, "tests/a.py", "import lbcore.cli.main", None),
    *((core_is_pure, "lbcore/core/a.py", f"import {name}", 1) for name in sorted(IMPURE_MODULES)),
    (core_is_pure, "lbcore/core/a.py", "from os.path import join", 1),
    (core_is_pure, "lbcore/core/a.py", "def f():\n    open('x')", 2),
    (core_is_pure, "lbcore/core/a.py", "print('x')", 1),
    (core_is_pure, "lbcore/core/a.py", "import msgspec, struct\nbook.open()", None),
    (core_is_pure, "lbcore/shell/a.py", "import os", None),
    (only_cli_prints, "lbcore/shell/a.py", "\nprint('x')", 2),
    (only_cli_prints, "lbcore/__init__.py", "print('x')", 1),
    (only_cli_prints, "lbcore/cli/a.py", "print('x')", None),
    (only_cli_prints, "lbcore/bootstrap.py", "print('x')", None),
    (sizes, "lbcore/a.py", lines(MODULE_LINES_MAX + 1), MODULE_LINES_MAX),
    (sizes, "lbcore/a.py", lines(MODULE_LINES_MAX), None),
    (sizes, "lbcore/a.py", "class A:\n  def f():\n" + lines(FUNCTION_LINES_MAX, "    x\n"), 2),
    (sizes, "lbcore/a.py", "async def f():\n" + lines(FUNCTION_LINES_MAX, "  x\n"), 1),
    (sizes, "lbcore/a.py", "def f():\n" + lines(FUNCTION_LINES_MAX - 1, "  x\n"), None),
    (has_docstring, "lbcore/shell/a.py", "x = 1", 1),
    (has_docstring, "lbcore/__init__.py", "", 1),
    (has_docstring, "lbcore/shell/_a.py", "x = 1", None),
    (has_docstring, "lbcore/shell/a.py", '"""What it is."""', None),
    (no_foreign_places, "docs/a.md", "see\n`/wo" + "rk/main`", 2),
    (no_foreign_places, "docs/a.md", "cd /tmp" + "/x", 1),
    (no_foreign_places, "a.lock", "https://pypi" + ".org/simple", 1),
    (no_foreign_places, "docs/a.md", "cd /home" + "/someone", 1),
    (no_foreign_places, "docs/a.md", "the queue/work/loop, /tmp/xyz, ~/.pyenv", None),
]


@pytest.mark.parametrize(("rule", "path", "text", "line"), SNIPPETS)
def test_rule_can_fail(rule: Rule, path: str, text: str, line: int | None) -> None:
    found = [breach.split(": ")[0] for breach in rule(Source(path, text))]
    assert found == ([] if line is None else [f"{path}:{line}"])
