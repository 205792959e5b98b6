"""Imports the modules that the topology names under ``tasks``, and explains those that fail.

Called by ``load_tasks`` in ``tasks.py``.  Knows nothing of tasks.  A mistake in a user's module
becomes one line with file and line number; the traceback is kept beside it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Final

from lbcore.core.errors import ConfigError

from .task_failures import format_failure, is_machinery, message_of

REASON_CHARACTERS_MAX: Final = 300

#: folders of installed code: a mistake is looked for outside them first
_LIBRARIES: Final = tuple(
    {
        os.path.join(path, "")
        for name, path in sysconfig.get_paths().items()
        if name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
)


class TaskImportError(ConfigError):
    """A module of tasks cannot be used.

    The message is one line that says where and why; ``detail`` is the traceback, or empty.
    """

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class TaskDefinitionError(TypeError):
    """``@task`` was used in a way that cannot work; raised where it stands, at import."""


def import_module(entry: str, base: Path) -> ModuleType:
    """Import ``package.module``, or a .py file, named relative to the folder ``base``.

    ``base`` and the file's own folder are put on ``sys.path``, as Python does for a script.
    Raises ``TaskImportError``.
    """
    _add_to_path(base)
    if entry.endswith(".py") or os.sep in entry:
        return _import_file(entry, base)
    return _import_by_name(entry, base)


def shown_path(path: str) -> str:
    """The path as a person would type it here: relative when it is below the current folder."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return path


def _add_to_path(folder: Path) -> None:
    text = str(folder)
    if text not in sys.path:
        sys.path.insert(0, text)


def _import_file(entry: str, base: Path) -> ModuleType:
    path = Path(os.path.abspath(base / entry))
    if not path.is_file():
        what = "is a folder; name the .py files in it" if path.is_dir() else "no such file"
        near = _nearest(path.name, (item.name for item in _python_files(path.parent)))
        hint = f"; did you mean {shown_path(str(path.parent / near))}?" if near else ""
        raise TaskImportError(f"tasks: {shown_path(str(path))}: {what}{hint}")
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    _add_to_path(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TaskImportError(f"tasks: {shown_path(str(path))}: not a Python source file")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as for any import: dataclasses and pickle look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _explained(error, shown_path(str(path))) from error
    return module


def _module_name(path: Path) -> str:
    """A name of its own for each file, so that two ``tasks.py`` or a ``random.py`` do not meet."""
    stem = re.sub(r"\W", "_", path.stem)
    return f"lb_tasks_{stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"


def _import_by_name(entry: str, base: Path) -> ModuleType:
    if not all(part.isidentifier() for part in entry.split(".")):
        raise TaskImportError(
            f"tasks: {entry!r} is neither a module name nor the path of a .py file"
        )
    # A file written a moment ago may not be in the import system's view of the folder.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(entry)
    except ModuleNotFoundError as error:
        if error.name is None or not (entry + ".").startswith(error.name + "."):
            raise _explained(error, entry) from error
        near = _nearest(entry, _module_names(base))
        hint = f"; did you mean `{near}`?" if near else ""
        raise TaskImportError(
            f"tasks: no module `{entry}` in {shown_path(str(base))} or on the Python path{hint}",
            format_failure(error),
        ) from error
    except (Exception, SystemExit) as error:
        raise _explained(error, entry) from error


def _explained(error: BaseException, module: str) -> TaskImportError:
    """``tasks: my_tasks.py:12: NameError: name 'x' is not defined``."""
    where = _location(error) or module
    if isinstance(error, SystemExit):
        reason = "the module ends the process (sys.exit) when it is imported"
    else:
        message = error.msg if isinstance(error, SyntaxError) else message_of(error)
        first = (message.splitlines() or [""])[0][:REASON_CHARACTERS_MAX]
        kind = "" if isinstance(error, TaskDefinitionError) else type(error).__name__
        reason = ": ".join(part for part in (kind, first) if part)
    return TaskImportError(f"tasks: {where}: {reason}", format_failure(error))


def _location(error: BaseException) -> str | None:
    """File and line of the innermost frame that the user wrote."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{shown_path(error.filename)}:{error.lineno or 1}"
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not is_machinery(frame.f_code.co_filename)
    ]
    own = [item for item in frames if not item[0].startswith(_LIBRARIES)] or frames
    return f"{shown_path(own[-1][0])}:{own[-1][1]}" if own else None


def _nearest(name: str, known: Iterable[str]) -> str | None:
    import difflib  # only errors need it, and start-up time counts

    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _python_files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.glob("*.py"))
    except OSError:
        return []


def _module_names(base: Path) -> list[str]:
    files = [item for depth in ("*.py", "*/*.py") for item in sorted(base.glob(depth))]
    return [
        ".".join(item.relative_to(base).with_suffix("").parts)
        for item in files
        if item.name != "__init__.py"
    ]
