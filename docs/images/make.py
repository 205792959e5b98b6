"""Draws ``terminal.svg`` of the README: runs the real commands and keeps what they really print.

    python docs/images/make.py

Each command runs in a terminal of 80 columns, in a temporary folder with the default topology.  Its
ports must be free, and the machine should have nothing else to do.
"""

from __future__ import annotations

import fcntl
import html
import io
import os
import pty
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
COLUMNS, ROWS = 80, 60
#: what the picture shows; ``down`` follows and is not shown
COMMANDS = (
    "python lb.py up -d",
    "python lb.py send --task sort --n 1000",
    "python lb.py status",
)

PROMPT = Style(color=Color.parse("#7fb4ff"), bold=True)
COMMAND = Style(bold=True)
THEME = TerminalTheme(
    (22, 27, 34),
    (209, 215, 224),
    [
        (72, 79, 88),
        (255, 123, 114),
        (63, 200, 110),
        (227, 179, 65),
        (88, 166, 255),
        (188, 140, 255),
        (57, 197, 207),
        (177, 186, 196),
    ],
)
#: rich's own form would load a font from elsewhere; a picture in a README may not
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>TITLE</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre;
}}
.{unique_id}-title {{ font-size: 17px; font-family: system-ui, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run(command: str, folder: Path) -> str:
    """What a command writes to a terminal, colours included; its errors end the script."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LB_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}",
        "TERM": "xterm-256color",
    }
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        shlex.split(command),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        # a progress bar would draw over itself
        stderr=subprocess.PIPE,
    )
    os.close(theirs)
    pieces: list[bytes] = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how a pty says end-of-file on Linux
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    if process.wait():
        raise SystemExit(f"{command}: exit code {process.returncode}\n{errors}")
    return b"".join(pieces).decode().replace("\r\n", "\n").rstrip()


def main() -> None:
    """Run, draw, write."""
    screen = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="256")
    with tempfile.TemporaryDirectory(prefix="lb-picture-") as name:
        folder = Path(name)
        (folder / "lb.py").symlink_to(REPOSITORY / "lb.py")
        shutil.copy(REPOSITORY / "config.yaml", folder)
        try:
            for position, command in enumerate(COMMANDS):
                if position:
                    screen.print()
                screen.print(Text.assemble(("$ ", PROMPT), (command, COMMAND)))
                screen.print(Text.from_ansi(run(command, folder)), soft_wrap=True)
        finally:
            run("python lb.py down -t 5", folder)
    screen.print()
    screen.print(Text("$ ", PROMPT))
    svg = screen.export_svg(title="lb", theme=THEME, code_format=SVG, unique_id="lb")
    title = f"A terminal: {', then '.join(COMMANDS)}"
    (HERE / "terminal.svg").write_text(svg.replace("TITLE", html.escape(title)))


if __name__ == "__main__":
    main()
