"""Which files a process has loaded its tasks from, seen from a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.e2e.running import REPOSITORY

PROGRAM = """
import json, sys
from pathlib import Path
from lbcore.core.errors import LBError
from lbcore.shell.sources import distrust_fresh_bytecode, loaded_sources
from lbcore.shell.tasks import load_tasks
base, failure = Path(sys.argv[1]), None
distrust_fresh_bytecode(["tasks.py"], base)
try:
    load_tasks([str(base / "tasks.py")], base)
except LBError as error:
    failure = error
files = [Path(file).name for file in loaded_sources(base, failure)]
print(json.dumps([files, sys.dont_write_bytecode]))
"""


def run(folder: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def write(folder: Path, age_s: float = 100.0, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / f"{name}.py"
        path.write_text(text)
        os.utime(path, (time.time() - age_s,) * 2)


def test_modules_and_what_they_import_beneath_the_folder(tmp_path: Path) -> None:
    library = tmp_path / ".venv" / "site-packages"
    library.mkdir(parents=True)
    write(library, installed="")
    write(
        tmp_path,
        tasks=f"import sys, json, helper\nsys.path.append({str(library)!r})\nimport installed",
        helper="import deeper",
        deeper="",
        another="",
    )
    assert run(tmp_path) == [["deeper.py", "helper.py", "tasks.py"], False]


def test_a_module_that_fails_is_one_of_them(tmp_path: Path) -> None:
    write(tmp_path, tasks="import helper", helper="import broken", broken="x = nowhere")
    assert run(tmp_path)[0] == ["broken.py", "helper.py", "tasks.py"]
    write(tmp_path, broken="x = (")
    assert run(tmp_path)[0] == ["broken.py", "helper.py", "tasks.py"]


def test_fresh_sources_are_not_cached(tmp_path: Path) -> None:
    write(tmp_path, tasks="import helper", helper="")
    assert not run(tmp_path)[1]
    write(tmp_path, age_s=0.0, helper="1")
    assert run(tmp_path)[1]
