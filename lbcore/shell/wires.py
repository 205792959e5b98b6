"""The supervisor's wires to its children: a leash for messages, a pipe for what they print.

Messages go to the supervisor, prints into the child's own log.  Never waits.  Called by
``supervisor.py``.
"""

from __future__ import annotations

import selectors
from collections.abc import Callable, Mapping
from typing import Any

from lbcore.core.topology import Topology

from .crew import TRIAL
from .logs import append_raw
from .process import ChildProcess
from .state import log_folder

#: gets what a child says: its name, and the message
Hear = Callable[[str, Mapping[str, Any]], None]


class Wires:
    """Both wires of every child that has a process."""

    def __init__(
        self, selector: selectors.BaseSelector, topology: Callable[[], Topology], hear: Hear
    ) -> None:
        self._selector = selector
        self._topology = topology
        self._hear = hear

    def attach(self, process: ChildProcess) -> None:
        """Listen to a process that was just started."""
        assert process.leash is not None
        self._selector.register(
            process.leash.socket, selectors.EVENT_READ, lambda: self.use_leash(process)
        )
        self._selector.register(
            process.output, selectors.EVENT_READ, lambda: self._read_output(process)
        )

    def send(self, process: ChildProcess, message: Mapping[str, Any]) -> None:
        """Say something to a child, if it has a process."""
        if process.leash is not None:
            process.leash.send(message)
            self._watch_leash(process)

    def _watch_leash(self, process: ChildProcess) -> None:
        """Ask to be woken when the rest of a message can be sent."""
        leash = process.leash
        if leash is None or leash.socket not in self._selector.get_map():
            return
        wish = selectors.EVENT_READ | (selectors.EVENT_WRITE if leash.has_unsent else 0)
        key = self._selector.get_key(leash.socket)
        if key.events != wish:
            self._selector.modify(leash.socket, wish, key.data)

    def use_leash(self, process: ChildProcess) -> None:
        """Send what is left to send and take in what the child said."""
        leash = process.leash
        if leash is None:
            return
        if leash.has_unsent:
            leash.flush()
            self._watch_leash(process)
        messages, is_open = leash.receive()
        for message in messages:
            self._hear(process.plan.name, message)
        if not is_open and leash.socket in self._selector.get_map():
            self._selector.unregister(leash.socket)

    def _read_output(self, process: ChildProcess) -> None:
        if process.output < 0:
            return
        text, is_open = process.read_output()
        self._keep_output(process, text, process.pid)
        if not is_open:
            self._selector.unregister(process.output)
            process.close_output()

    def _keep_output(self, process: ChildProcess, text: str, pid: int | None) -> None:
        """Put what a child wrote past its logging into its own log file."""
        if text:
            name, running = process.plan.name, process.running_requests
            # of several nobody knows which one wrote it
            request = running[0] if len(running) == 1 else 0
            topology = self._topology()
            file = "supervisor" if name == TRIAL else name
            path = log_folder(topology) / f"{file}.log"
            append_raw(path, name, text, request, logs=topology.logs, pid=pid or 0)

    def detach(self, process: ChildProcess, pid: int) -> None:
        """A process ended: take in its last words, and let go of its wires."""
        # the pipe may stay open, in a process that escaped its group
        while process.output >= 0:
            text, is_open = process.read_output()
            self._keep_output(process, text, pid)
            if not is_open or not text:
                break
        self._keep_output(process, process.take_unread(), pid)
        watched = self._selector.get_map()
        if process.leash is not None and process.leash.socket in watched:
            self._selector.unregister(process.leash.socket)
        if process.output >= 0 and process.output in watched:
            self._selector.unregister(process.output)
        process.close_streams()
