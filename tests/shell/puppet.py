"""A process that burns CPU time, and has children, exactly as a test tells it."""

from __future__ import annotations

import subprocess
import sys

#: runs each line that it reads as Python, and answers with what the line left in ``out``
PUPPET = """
import os, signal, subprocess, sys, threading, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
def spawn():
    child = subprocess.Popen([sys.executable, "-c", SOURCE],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return child
def tell(child, line):
    child.stdin.write(line + "\\n"); child.stdin.flush()
    return child.stdout.readline()
def orphan_to_be():
    go_read, go = os.pipe(); done, done_write = os.pipe(); leave_read, leave = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.close(go); os.write(done_write, b"x")
            while os.read(go_read, 1):
                burn(0.2); os.write(done_write, b"x")
            os._exit(0)
        os.read(leave_read, 1)
        os._exit(0)
    os.read(done, 1)
    return middle, leave, go, done
for line in sys.stdin:
    out = None
    exec(line)
    print(out, flush=True)
"""


class Puppet:
    """A process that does what it is told, one line of Python at a time."""

    def __init__(self) -> None:
        source = f"SOURCE = {PUPPET!r}\nSOURCE = 'SOURCE = ' + repr(SOURCE) + SOURCE\n" + PUPPET
        self.process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.do("pass")

    def do(self, line: str) -> str:
        """Run a line there and wait for its end."""
        self.begin(line)
        return self.end()

    def begin(self, line: str) -> None:
        """Start a line there."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Wait for the line that was begun."""
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer, f"the puppet died: {self.process.poll()}"
        return answer.strip()

    def close(self) -> None:
        """End it, with all its children: their standard input closes."""
        self.process.kill()
        self.process.communicate()
