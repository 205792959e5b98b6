"""Policies of the user's own: found as task modules are, checked, and kept from doing harm.

The topology names a class, ``my_policies.py:MyPolicy``.  It is imported where it is used, in the
broker's process, and before that in one of its own: by ``lb check``, and by the trial that precedes
a change.  The core is handed what makes the policy and imports nothing.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from lbcore.core.errors import ConfigError
from lbcore.core.fleet import Fleet, Worker
from lbcore.core.policies import POLICIES, Outcome, Policy, PolicyMaker, Random
from lbcore.core.topology import Topology

from .sources import distrust_fresh_bytecode
from .state import base_folder
from .task_failures import format_failure, message_of
from .task_modules import TaskImportError, import_module

if TYPE_CHECKING:
    from loguru import Logger

#: exit code of a broker whose policy cannot be loaded
EXIT_POLICY: Final = 2

#: what takes over from a policy that fails, by whether it bound late
_SUBSTITUTES: Final = {True: "least_load", False: "least_pending"}

Tell = Callable[[str, str], None]


class PolicyError(ConfigError):
    """The topology's policy cannot be used: one line, and a traceback or nothing in ``detail``."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(f"policy: {message}")
        self.detail = detail


def load_policies(topology: Topology, logger: Logger | None = None) -> dict[str, PolicyMaker]:
    """What makes each policy that this topology may use, by name: those built in, and its own.

    When one of the user's fails later, that is an error in ``logger``.  Raises ``PolicyError``.
    """
    makers: dict[str, PolicyMaker] = dict(POLICIES)

    def tell(text: str, detail: str) -> None:
        if logger is not None:
            logger.bind(detail=detail).error("{}", text)

    if topology.policy.is_own:
        own = _load(topology)
        label = topology.policy.label
        makers[topology.policy.name] = lambda fleet, rng: Guarded(own, fleet, rng, label, tell)
    return makers


def _load(topology: Topology) -> type[Policy]:
    entry, _, name = topology.policy.name.rpartition(":")
    distrust_fresh_bytecode([entry], base_folder(topology))
    try:
        module = import_module(entry, base_folder(topology))
    except TaskImportError as error:
        raise PolicyError(str(error).removeprefix("tasks: "), error.detail) from error
    label = topology.policy.label
    found = getattr(module, name, None)
    if found is None:
        there = [each for each, value in vars(module).items() if _is_policy(value)]
        hint = f"; there are: {', '.join(there)}" if there else ", nor any other policy"
        raise PolicyError(f"{label}: there is no class {name!r}{hint}")
    if not _is_policy(found):
        raise PolicyError(f"{label}: is no policy; write `class {name}(lbcore.Policy):`")
    if found.choose is Policy.choose:
        raise PolicyError(f"{label}: has no method `choose`")
    try:
        found(Fleet(topology.workers, topology.policy), random.Random(0))
    except Exception as error:
        what = f"{label}: making it raises {type(error).__name__}: {_first_line(error)}"
        raise PolicyError(what, format_failure(error)) from error
    policy: type[Policy] = found
    return policy


def _is_policy(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Policy) and value is not Policy


def _first_line(error: BaseException) -> str:
    return (message_of(error).splitlines() or [""])[0]


class Guarded(Policy):
    """A user's policy; one built in takes its place for good when it raises or names nonsense.

    So that a mistake there costs a line in the log, and neither the broker nor a request.
    """

    def __init__(
        self, made_by: PolicyMaker, fleet: Fleet, rng: Random, label: str, tell: Tell
    ) -> None:
        super().__init__(fleet, rng)
        self.name = label
        self._tell = tell
        #: why it is not the user's any more
        self._failure = ""
        self._policy: Policy = self
        try:
            self._policy = made_by(fleet, rng)
        except Exception as error:
            self._replace("making it", error)
        self.late_binding = bool(self._policy.late_binding)
        self.follows = bool(self._policy.follows)

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """As the user's policy does, if what it says makes sense."""
        try:
            worker = self._policy.choose(task, now, startable)
            if worker is None or (
                isinstance(worker, Worker)
                and worker.fleet is self.fleet
                and worker.position >= 0
                and task in worker.tasks
            ):
                return worker
            named = worker.name if isinstance(worker, Worker) else f"{worker!r:.100}"
            raise ValueError(f"{named} is not a ready worker that has the task")
        except Exception as error:
            if self._failure:
                raise
            self._replace("choose", error, now)
            return self._policy.choose(task, now, startable)

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """Passed on."""
        try:
            self._policy.changed(worker, now, keep_place)
        except Exception as error:
            self._replace("changed", error, now)

    def sent(self, worker: Worker, task: int, ids: Sequence[int], now: float) -> None:
        """Passed on."""
        try:
            self._policy.sent(worker, task, ids, now)
        except Exception as error:
            self._replace("sent", error, now)

    def answered(self, worker: Worker, outcome: Outcome, now: float) -> None:
        """Passed on."""
        try:
            self._policy.answered(worker, outcome, now)
        except Exception as error:
            self._replace("answered", error, now)

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One line for a person: why that worker won, or why the user's policy is not asked."""
        try:
            reason = " ".join(str(self._policy.reason(task, winner, now)).split())
        except Exception as error:
            reason = f"{winner.name} was chosen; `reason` raised {type(error).__name__}"
        return f"{reason} ({self._failure})" if self._failure else reason

    def _replace(self, where: str, error: Exception, now: float = 0.0) -> None:
        if self._failure:
            raise error
        substitute = _SUBSTITUTES[bool(self.late_binding)]
        self._failure = f"{self.name} failed, {substitute} took its place"
        what = f"{where} raised {type(error).__name__}: {_first_line(error)}"
        self._tell(
            f"policy {self.name}: {what}; {substitute} takes its place", format_failure(error)
        )
        self._policy = POLICIES[substitute](self.fleet, self.rng)
        for worker in self.fleet.ready:
            self._policy.changed(worker, now)


def substitutes(topology: Topology) -> Mapping[str, PolicyMaker]:
    """For a broker that starts again and cannot load the policy any more, and is to serve."""
    return {**POLICIES, topology.policy.name: POLICIES[_SUBSTITUTES[True]]}


def tell_failure(leash: socket.socket, error: PolicyError) -> int:
    """Tell the supervisor why the broker cannot start; returns its exit code."""
    failed = {"event": "failed", "error": str(error), "detail": error.detail, "code": EXIT_POLICY}
    leash.sendall(msgspec.json.encode(failed) + b"\n")
    return EXIT_POLICY
