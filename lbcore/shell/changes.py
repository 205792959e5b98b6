"""Changes of a running system, one after the other: reload, scale, drain, resume, restart.

Each is asked for by a command, a signal or a saved file, and goes the same way: what is wanted is
read and compared (``core/plan.py``), sockets are bound, a trial process loads the task modules; if
all of that went well the supervisor's machine is told, and the rest is its affair.  Until then
nothing is touched.  The next change does not wait until the last worker has gone: it is compared
with what is wanted, not with what is there.  Called by ``supervisor.py``, in its one thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from lbcore.core.children import (
    ChildAdded,
    ChildRemoved,
    ChildState,
    HoldRequested,
    RestartRequested,
    ResumeRequested,
    Role,
    Wish,
)
from lbcore.core.errors import LBError
from lbcore.core.plan import Plan, plan, with_workers
from lbcore.core.supervision import Supervision
from lbcore.core.topology import Topology

from .change import Change, Host, Misspelt, Refused, Wanted
from .crew import Crew
from .listeners import Listeners
from .process import Death
from .trial import Trial

#: exit codes of the command that asked: what it wants is wrong, or did not come true
_WRONG: Final = 2
_FAILED: Final = 1
#: how many workers a message names
_NAMES_SHOWN: Final = 12


@dataclass(slots=True, kw_only=True)
class _Job:
    """A change under way."""

    change: Change
    topology: Topology
    plan: Plan
    begun_at: float
    #: sockets that are bound for it
    sockets: Mapping[str, Any] = field(default_factory=dict)


class Changes:
    """The queue of changes, and what is wanted now."""

    def __init__(
        self,
        host: Host,
        machine: Supervision,
        crew: Crew,
        listeners: Listeners,
        start: Wanted,
    ) -> None:
        self._host = host
        self._machine = machine
        self._crew = crew
        self._listeners = listeners
        self._load = start.load
        #: as the file has it, and as it is wanted: with another number of workers, perhaps
        self._loaded = self.wanted = start.topology
        #: the number of workers that somebody asked for; and that of the file at that time, None
        #: when it counts whatever the file says
        self._count = start.count
        self._count_before: int | None = None
        self._queue: deque[Change] = deque()
        self._job: _Job | None = None
        #: changes that are made, and whose workers are not there or gone yet
        self._settling: list[_Job] = []
        self.trial: Trial | None = None
        #: new worker -> the one that is leaving and whose socket it takes over
        self._heirs: dict[str, str] = {}
        #: the last change, for ``status``
        self.last: dict[str, Any] | None = None
        #: the files that the tasks come from, as the last trial found them
        self.sources: Sequence[str] = ()

    # ---- asking --------------------------------------------------------------------------------

    def ask(self, change: Change) -> None:
        """Queue a change.  A reload that has not begun serves all who want one."""
        for waiting in self._queue:
            if change.kind == waiting.kind == "reload" and change.dry_run == waiting.dry_run:
                waiting.listeners += change.listeners
                waiting.is_quiet = waiting.is_quiet and change.is_quiet
                return
        self._queue.append(change)

    def advance(self) -> None:
        """Go as far as possible without waiting."""
        phase = self._machine.phase
        if phase in (ChildState.DRAIN, ChildState.STOPPING, ChildState.EXITED):
            self._give_up_all()
            return
        self._end_trial()
        while self._queue and self._job is None and phase is ChildState.RUNNING:
            self._begin(self._queue.popleft())
        for job in [job for job in self._settling if self._is_settled(job)]:
            self._settling.remove(job)
            self._finish(job)

    def _give_up_all(self) -> None:
        waiting = [job.change for job in self._settling] + list(self._queue)
        if self._job is not None:
            waiting.append(self._job.change)
            self._discard(self._job)
            self._job = None
        self._settling, self._queue = [], deque()
        for change in waiting:
            change.tell({"event": "failed", "error": "the system is stopping", "code": 3}, True)

    # ---- beginning -----------------------------------------------------------------------------

    def _begin(self, change: Change) -> None:
        try:
            job = self._aim(change)
        except Misspelt as error:
            change.tell({"event": "failed", "error": str(error), "code": _WRONG}, True)
            return
        except LBError as error:
            self._fail(change, str(error), _WRONG)
            return
        except OSError as error:  # no descriptor is left, perhaps
            self._fail(change, str(error), _FAILED)
            return
        if change.dry_run:
            change.tell({"event": "plan", "lines": job.plan.lines})
            change.tell({"event": "done", "seconds": 0.0}, True)
        elif change.kind in ("reload", "scale") and not job.plan.lines:
            self._loaded = job.topology if change.kind == "reload" else self._loaded
            self._say_unchanged(change)
        else:
            self._job = job
            self._try(job)

    def _aim(self, change: Change) -> _Job:
        """What a change comes to.  Raises ``LBError`` when it cannot be made."""
        topology, steps = self.wanted, Plan()
        match change.kind:
            case "reload":
                topology = self._reload(commit=not change.dry_run)
            case "scale":
                topology = self._scale(change)
            case "learn":
                pass
            case _:
                self._check_names(change)
        if change.kind in ("drain", "resume", "restart"):
            names = tuple(change.names) or tuple(worker.name for worker in topology.workers)
            change.names = names
            steps = Plan(
                lines=tuple(f"~ {name} {change.kind}" for name in names),
                restarted=names if change.kind == "restart" else (),
            )
        elif topology is not self.wanted:
            steps = plan(self.wanted, topology)
        if steps.refusals:
            raise Refused("\n".join(steps.refusals))
        job = _Job(change=change, topology=topology, plan=steps, begun_at=time.monotonic())
        if not change.dry_run and steps.lines:
            try:
                for name in steps.added:
                    self._crew.shared.assign(name)
            except MemoryError as error:
                raise Refused(str(error)) from None
            job.sockets = self._listeners.prepare(topology, steps.heirs)
        return job

    def _reload(self, commit: bool) -> Topology:
        if self._load is None:
            raise Refused("this system was not started from a file")
        loaded = self._load()
        count = self._count
        if count is not None and self._count_before not in (None, len(loaded.workers)):
            # the file's number of workers is newer than the one that was asked for
            count = None
        if commit:
            self._count = count
            self._loaded = loaded
        return loaded if count is None else with_workers(loaded, count)

    def _scale(self, change: Change) -> Topology:
        count = change.count
        if change.is_relative:
            count = max(1, len(self.wanted.workers) + count)
        self._count, self._count_before = count, len(self._loaded.workers)
        # settings are those that hold, workers those of the file as far as it has them
        workers = with_workers(self._loaded, count).workers
        return replace(self.wanted, workers=workers)

    def _check_names(self, change: Change) -> None:
        known = [worker.name for worker in self.wanted.workers]
        unknown = [name for name in change.names if name not in known]
        if unknown:
            there = ", ".join(known[:_NAMES_SHOWN]) + (", …" if len(known) > _NAMES_SHOWN else "")
            raise Misspelt(f"there is no worker {unknown[0]!r:.80}; there are: {there}")

    def _say_unchanged(self, change: Change) -> None:
        was_wrong = self.last is not None and not self.last["ok"]
        if was_wrong or not change.is_quiet:
            self._host.note("INFO", "", f"{change.source}: nothing changes")
            self._remember(change, (), "")
        change.tell({"event": "plan", "lines": ()})
        change.tell({"event": "done", "seconds": 0.0}, True)

    # ---- trying --------------------------------------------------------------------------------

    def _try(self, job: _Job) -> None:
        """Load the task modules in each environment that a worker will have, and a new policy."""
        names, policy = set(job.plan.starting), job.topology.policy
        is_new_policy = policy.is_own and policy.name != self.wanted.policy.name
        if job.change.kind == "learn" or is_new_policy:
            names.add(job.topology.workers[0].name)
        workers = {
            (tuple(sorted(worker.env.items())), worker.cpus, worker.nice): worker
            for worker in job.topology.workers
            if worker.name in names
        }
        processes = [self._crew.make_trial(job.topology, worker) for worker in workers.values()]
        # what is built in has been loaded before
        own_code = job.topology.tasks or is_new_policy
        if not own_code or None in processes or not processes:
            self._apply(job)
            return
        self.trial = Trial([each for each in processes if each], self._host.watch_process)
        self.trial.begin()

    def trial_said(self, message: Mapping[str, Any]) -> None:
        """The process of the trial has its answer."""
        if self.trial is not None:
            self.trial.heard(message)

    def trial_died(self, death: Death) -> None:
        """The process of the trial has ended."""
        if self.trial is not None:
            self.trial.ended(death)

    def _end_trial(self) -> None:
        trial, job = self.trial, self._job
        if trial is None:
            return
        trial.look_at_the_clock(self._machine.timing.start_limit_s)
        if not trial.is_over:
            return
        self.trial, self._job = None, None
        self.sources = trial.files or self.sources
        if job is None:
            return
        if not trial.error:
            self._apply(job)
            return
        self._discard(job)
        if trial.detail:
            self._host.note("DEBUG", "", trial.detail)
        self._fail(job.change, trial.error, _WRONG)

    def _discard(self, job: _Job) -> None:
        """Give up what was bound, or kept, for a change that is not made."""
        self._listeners.discard(job.sockets)
        present = {process.plan.name for process in self._crew}
        for name in (_coming_back(job) & self._listeners.sockets.keys()) - present:
            self._listeners.drop(name)

    # ---- doing ---------------------------------------------------------------------------------

    def _apply(self, job: _Job) -> None:
        self._job = None
        change, steps = job.change, job.plan
        if change.kind == "learn":
            return
        change.tell({"event": "plan", "lines": steps.lines})
        if steps.lines:
            self._host.note("INFO", "", f"{change.source}: {_count(len(steps.lines), 'change')}")
        for line in steps.lines:
            self._host.note("INFO", "", line)
        if job.topology is not self.wanted:
            self._listeners.install(job.sockets, job.topology)
            self.wanted = job.topology
            self._crew.follow(job.topology)
            drain_s = job.topology.limits.drain_s
            self._machine.timing = replace(self._machine.timing, drain_s=drain_s)
        self._settling.append(job)
        self._remember(change, steps.lines, "")
        self._move(job)
        if steps.lines:
            self._host.settings_changed()

    def _move(self, job: _Job) -> None:
        """Tell the machine."""
        change, steps, handle = job.change, job.plan, self._host.handle
        for name in steps.removed:
            if self._heirs.pop(name, None) is None:
                handle(ChildRemoved(name=name))
        for name in steps.added:
            if name in steps.heirs and steps.heirs[name] in self._machine.children:
                self._heirs[name] = steps.heirs[name]
            else:
                handle(ChildAdded(name=name, role=Role.WORKER))
        if steps.restarted:
            rolling = change.rolling or change.kind != "restart"
            handle(RestartRequested(names=steps.restarted, rolling=rolling, limit_s=change.limit_s))
        for name in change.names if change.kind == "drain" else ():
            handle(HoldRequested(name=name))
        for name in change.names if change.kind == "resume" else ():
            handle(ResumeRequested(name=name))

    def forgotten(self, name: str) -> None:
        """A worker is gone for good; whoever waits for its address gets it."""
        self._crew.forget(name)
        heir = next((heir for heir, owner in self._heirs.items() if owner == name), None)
        if self._job is not None and name in _coming_back(self._job):
            pass  # it keeps its socket
        elif heir is None:
            self._listeners.drop(name)
        else:
            del self._heirs[heir]
            self._listeners.hand_over(name, heir)
            self._crew.follow(self.wanted)
            self._host.handle(ChildAdded(name=heir, role=Role.WORKER))
        self._host.settings_changed()

    # ---- the end -------------------------------------------------------------------------------

    def _is_settled(self, job: _Job) -> bool:
        return all(map(self._has_arrived, self._names(job))) and not any(
            name in self._machine.children
            for name in job.plan.removed
            if name not in {worker.name for worker in self.wanted.workers}
        )

    def _names(self, job: _Job) -> list[str]:
        """The workers that a change is about, as far as nobody has removed them since."""
        wanted = {worker.name for worker in self.wanted.workers}
        names = (*job.plan.starting, *job.change.names)
        return [name for name in dict.fromkeys(names) if name in wanted]

    def _has_arrived(self, name: str) -> bool:
        child = self._machine.children.get(name)
        if child is None or child.wish is not Wish.NONE:
            return False
        if child.state is ChildState.DRAIN:
            return child.held and child.drained
        return child.state in (ChildState.RUNNING, ChildState.FATAL)

    def _finish(self, job: _Job) -> None:
        children = self._machine.children
        broken = [name for name in self._names(job) if children[name].state is ChildState.FATAL]
        if broken:
            text = "\n".join(f"{name} cannot start: {children[name].cause}" for name in broken)
            self._fail(job.change, text, _FAILED, job.plan.lines)
            return
        seconds = time.monotonic() - job.begun_at
        self._host.note("INFO", "", f"{job.change.source}: done in {seconds:.2f} s")
        job.change.tell({"event": "done", "seconds": seconds}, True)

    def _fail(self, change: Change, error: str, code: int, lines: Sequence[str] = ()) -> None:
        if not change.dry_run and change.kind != "learn":
            what = "" if lines else ", nothing is changed"
            self._host.note("ERROR", "", f"{change.source}{what}: {error}")
            self._remember(change, lines, error)
        change.tell({"event": "failed", "error": error, "code": code}, True)

    def _remember(self, change: Change, lines: Sequence[str], error: str) -> None:
        self.last = {
            "at": time.time(),
            "source": change.source,
            "ok": not error,
            "error": error,
            "changes": list(lines),
        }
        self._host.publish()


def _coming_back(job: _Job) -> set[str]:
    """New workers for which nothing was bound: they had not left when they were wanted again."""
    return set(job.plan.added) - job.sockets.keys() - job.plan.heirs.keys()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
