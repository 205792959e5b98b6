"""What the README shows runs as it stands: the task, the client, the tour word by word."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from lbcore.shell.config_file import load
from lbcore.shell.state import SystemState, parse_address, read_state
from tests.e2e.running import RunningSystem
from tests.test_docs import BLOCKS, README, REPOSITORY


def readme_block(language: str, beginning: str) -> str:
    (text,) = [
        block.text
        for block in BLOCKS[README]
        if block.language == language and block.text.startswith(beginning)
    ]
    return text


def test_the_task_and_the_client_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "my_tasks.py").write_text(readme_block("python", "# my_tasks.py"))
    yaml_text = readme_block("yaml", "# config.yaml") + "broker: {port: 0}\nworkers: 2\n"
    system = RunningSystem(tmp_path, yaml_text)
    try:
        system.up()
        counted = system.cli(
            "send", "--task", "word_count", "--args", '{"text": "to be or not to be"}'
        )
        assert "word_count: 1 request in" in counted.stdout
        assert "Count the words of a" in system.cli("tasks").stdout
        with system.client() as client:
            words = client.call("word_count", text="to be or not to be", top=2)
        assert words == {"to": 2, "be": 2}
        code = readme_block("python", "from lbcore import Client")
        port = parse_address(system.state().broker.address).port
        script = tmp_path / "script.py"
        script.write_text(code.replace("8000", str(port)))
        assert str(port) in script.read_text()
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        lines = done.stdout.splitlines()
        assert lines[:5] == ["True", "78498", "4", "25", "168"]
        assert sorted(int(line.split()[0]) for line in lines[5:55]) == list(range(50))
        assert lines[55].startswith("TypeError '<' not supported")
        system.down()
    finally:
        system.clean_up()


# ---- the tour ----------------------------------------------------------------------------------


def tour() -> list[str]:
    """The command lines of the tour, in order."""
    section = README.read_text().partition("\n## The five-minute tour\n")[2]
    section = section.partition("\n## ")[0]
    fenced = re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    lines = [line for text in fenced for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith(" ")]


def state_of(folder: Path) -> SystemState | None:
    return read_state(load(folder / "config.yaml", environ={}))


def wait_for_busy_worker(folder: Path, lb: list[str], environment: dict[str, str]) -> int:
    """The pid of worker-1, once it has something to do."""
    give_up_at = time.monotonic() + 30.0
    while time.monotonic() < give_up_at:
        done = subprocess.run(
            [*lb, "status", "--json"], cwd=folder, env=environment, capture_output=True, check=False
        )
        (worker, *_) = yaml.safe_load(done.stdout)["workers"]
        if worker["pending"]:
            return int(worker["pid"])
    raise AssertionError("worker-1 got nothing to do")


def test_the_tour_works_word_by_word(tmp_path: Path) -> None:
    """In a folder that looks like a clone, on free ports; what sleeps is sent less often."""
    lines = tour()
    assert lines[0] == "python lb.py up -d"
    assert lines[-2] == "python lb.py down"
    assert lines[-1].endswith("--report quarter.html")
    (addition,) = [block.text for block in BLOCKS[README] if block.text.startswith("  - {name:")]
    (tmp_path / "lb.py").symlink_to(REPOSITORY / "lb.py")
    config = tmp_path / "config.yaml"
    shutil.copy(REPOSITORY / "config.yaml", config)
    config.write_text(re.sub(r"port: \d+", "port: 0", config.read_text()))
    lb = [sys.executable, "lb.py"]
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("LB_") or key == "LB_RUNTIME_DIR"
    }
    background: subprocess.Popen[str] | None = None
    try:
        for line in lines:
            if line == "kill -9 PID":
                os.kill(wait_for_busy_worker(tmp_path, lb, environment), 9)
                continue
            if line == "wait":
                assert background is not None
                out, _ = background.communicate(timeout=60)
                assert background.returncode == 0
                assert out.startswith("short: 6 requests in ")
                continue
            if line == "python lb.py reload":
                text = config.read_text()
                last = "  - {name: worker-3, port: 0}\n"
                assert last in text
                config.write_text(text.replace(last, last + addition.replace("9004", "0")))
            words = shlex.split(re.sub(r"--n [26]0", "--n 6", line))
            assert words[:2] == ["python", "lb.py"], line
            command = [*lb, *words[2:]]
            if words[-1] == "&":
                background = subprocess.Popen(
                    command[:-1],
                    cwd=tmp_path,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                continue
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
            )
            # a worker that was just killed may still be on its way back
            accepted = (0, 1) if words[2] == "status" else (0,)
            assert done.returncode in accepted, f"{line}\n{done.stdout}\n{done.stderr}"
            if words[2] == "logs":
                assert "worker-1: died: signal 9 (SIGKILL) while it ran request" in done.stdout
            if words[2] == "explain":
                assert "would be done soonest" in done.stdout
        assert state_of(tmp_path) is None
    finally:
        subprocess.run([*lb, "down", "-t", "0"], cwd=tmp_path, env=environment, check=False)
        if background is not None and background.poll() is None:
            background.kill()
            background.communicate()
