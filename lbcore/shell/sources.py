"""The user's source files: which ones this process has loaded, and whether they are fresh.

Called in the children that load tasks; ``up --watch`` looks at those files.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

#: a source that was saved more recently may be saved again within the same second
_FRESH_S: Final = 2.0
#: installed code lies beneath a project's folder as well, in its ``.venv``
_LIBRARY_FOLDERS: Final = ("site-packages", "dist-packages")


def distrust_fresh_bytecode(modules: Iterable[str], base: Path) -> None:
    """Cache no bytecode while a source is so new that its next version may look the same.

    Python knows a cached module by the size of its source and the second in which that was saved.
    Looked at are the folders of the topology and of its task files.
    """
    folders = {base, *((base / entry).parent for entry in modules if entry.endswith(".py"))}
    newest = 0.0
    for folder in folders:
        with suppress(OSError):  # gone, or not for us to see: loading will tell
            newest = max([newest, *(file.stat().st_mtime for file in folder.glob("*.py"))])
    if abs(time.time() - newest) < _FRESH_S:
        sys.dont_write_bytecode = True


def loaded_sources(base: Path, error: BaseException | None = None) -> list[str]:
    """The .py files below ``base`` that the modules of this process come from.

    With an ``error`` also those that its traceback names: what failed to load is no module.
    """
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, SyntaxError):
            files.add(error.filename)
        frame = error.__traceback__
        while frame is not None:
            files.add(frame.tb_frame.f_code.co_filename)
            frame = frame.tb_next
        error = error.__cause__ or error.__context__
    root = os.path.join(os.path.realpath(base), "")
    own = os.path.join(str(Path(__file__).resolve().parent.parent), "")
    standard = os.path.join(sysconfig.get_paths()["stdlib"], "")
    return sorted(
        file
        for file in files
        if isinstance(file, str)
        and file.endswith(".py")
        and os.path.realpath(file).startswith(root)
        and not os.path.realpath(file).startswith((own, standard))
        and not set(file.split(os.sep)) & set(_LIBRARY_FOLDERS)
    )
