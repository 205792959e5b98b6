"""A topology in a folder of its own, whose logs a test writes, and how to run the command on it."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

from lbcore.core.rotation import parse_retention, parse_rotation
from lbcore.shell.log_files import LogFile
from lbcore.shell.log_lines import LogLine, format_line

SEVEN_42 = 7 << 32 | 42
NOW = datetime.now().astimezone().replace(hour=12, minute=0, second=0, microsecond=0)

CONFIG = """\
name: logs-test
broker: {host: 127.0.0.1, port: 18000}
workers:
  - {name: worker-1, port: 19001}
  - {name: worker-2, port: 19002}
"""


class System:
    """A topology in a folder of its own, whose logs the test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "logs"
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG)
        self._files: dict[str, LogFile] = {}

    def log(
        self,
        process: str,
        message: str,
        *,
        at_s: float = 0,
        level: str = "INFO",
        request: int = 0,
        exception: str = "",
        style: str = "text",
    ) -> None:
        """Append one record, ``at_s`` seconds after noon of today."""
        self.folder.mkdir(exist_ok=True)
        if process not in self._files:
            path = self.folder / f"{process}.log"
            rotation, retention = parse_rotation("500 B"), parse_retention("99")
            self._files[process] = LogFile(path, rotation, retention, str)
        line = LogLine(
            time=NOW + timedelta(seconds=at_s),
            level=level,
            process=process,
            request=request,
            message=message,
            exception=exception,
        )
        assert self._files[process].write(format_line(line, style))

    def arguments(self, *arguments: str) -> list[str]:
        return ["logs", "-c", str(self.config), *arguments]


def command(*arguments: str) -> list[str]:
    """A command line of lb, for a process of its own."""
    return [sys.executable, "-c", "from lbcore.cli.main import main; main()", *arguments]
