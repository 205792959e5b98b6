"""What lies between the topology that runs and the one that is wanted: a diff, and what to do.

Pure: two topologies in, a ``Plan`` out.  The lines are for people and go to ``lb reload``, the log
and ``status``; the rest is for ``shell/changes.py``, which carries it out.  Addresses are compared
as they were written: a worker on any free port stays on the one it got.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from .topology import Address, Topology, WorkerConfig

#: keys of a worker that a running process takes over; any other needs a new process
_LIVE_KEYS: Final = ("weight", "tags")
#: the other keys, those whose values say something in a line
_SHOWN_KEYS: Final = ("concurrency", "nice", "cpus")
#: sections whose keys change in a running system, and the keys that do not
_LIVE_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "policy": (),
    "limits": (),
    "logs": ("folder",),
}
_LISTS: Final = ("workers", "tasks")
#: not a setting: where the others come from
_ORIGIN: Final = "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the running system becomes another one; nothing is done when ``refusals`` has a line."""

    #: what changes, one line each, such as ``+ worker-5`` or ``~ worker-2 weight 1 → 2``
    lines: tuple[str, ...] = ()
    #: what cannot change while the system runs, one line each
    refusals: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    #: workers that need a new process
    restarted: tuple[str, ...] = ()
    #: new worker -> removed worker whose address, and so its socket, it takes over
    heirs: Mapping[str, str] = field(default_factory=dict)

    @property
    def starting(self) -> tuple[str, ...]:
        """The workers for which a process will be started."""
        return (*self.added, *self.restarted)


def plan(old: Topology, new: Topology) -> Plan:
    """What to do so that a system that runs ``old`` runs ``new``."""
    before = {worker.name: worker for worker in old.workers}
    after = {worker.name: worker for worker in new.workers}
    added = tuple(name for name in after if name not in before)
    removed = tuple(name for name in before if name not in after)
    lines = [*(f"+ {name}" for name in added), *(f"- {name}" for name in removed)]
    restarted: list[str] = []
    for name in after:
        if name not in before:
            continue
        live, reasons = _compare_workers(before[name], after[name])
        if old.tasks != new.tasks:
            reasons.append("tasks")
        lines += [f"~ {name} {change}" for change in live]
        if reasons:
            restarted.append(name)
            lines.append(f"~ {name} restart: {', '.join(reasons)}")
    lines += _compare_tasks(old.tasks, new.tasks)
    changes, refusals = _compare_sections(old, new)
    heirs, taken = _find_heirs(before, after)
    return Plan(
        lines=(*lines, *changes),
        refusals=(*refusals, *taken),
        added=added,
        removed=removed,
        restarted=tuple(restarted),
        heirs=heirs,
    )


def with_workers(topology: Topology, number: int) -> Topology:
    """The topology with this many workers; new ones are named on and get free ports."""
    workers = list(topology.workers[:number])
    names = {worker.name for worker in workers}
    candidate = 0
    while len(workers) < number:
        candidate += 1
        if (name := f"worker-{candidate}") not in names:
            workers.append(WorkerConfig(name=name, address=Address(port=0)))
    return replace(topology, workers=tuple(workers))


def _compare_workers(old: WorkerConfig, new: WorkerConfig) -> tuple[list[str], list[str]]:
    """What changes in the process as it is, and why a new one is needed."""
    live: list[str] = []
    reasons: list[str] = []
    for key in (each.name for each in fields(WorkerConfig)):
        before, after = getattr(old, key), getattr(new, key)
        if before == after:
            continue
        if key in _LIVE_KEYS:
            live.append(f"{key} {_text(before)} → {_text(after)}")
        elif key == "address":
            reasons.append(f"address {before} → {after}")
        elif key in _SHOWN_KEYS:
            reasons.append(f"{key} {_text(before)} → {_text(after)}")
        else:
            # values of an environment may be long, or secret
            reasons.append(key)
    return live, reasons


def _compare_tasks(old: tuple[str, ...], new: tuple[str, ...]) -> Iterator[str]:
    yield from (f"+ tasks {_last_part(name)}" for name in new if name not in old)
    yield from (f"- tasks {_last_part(name)}" for name in old if name not in new)


def _last_part(module: str) -> str:
    return module.rpartition("/")[2]


def _compare_sections(old: Topology, new: Topology) -> tuple[list[str], list[str]]:
    """Lines for what changes, and for what cannot."""
    lines: list[str] = []
    refusals: list[str] = []
    for name in (each.name for each in fields(Topology)):
        before, after = getattr(old, name), getattr(new, name)
        if before == after or name in _LISTS or name == _ORIGIN:
            continue
        if name not in _LIVE_SECTIONS:
            refusals.append(_refusal(name, before, after))
            continue
        for key in (each.name for each in fields(before)):
            one, other = getattr(before, key), getattr(after, key)
            if one == other:
                continue
            path = f"{name}.{key}"
            if path == "policy.name":
                path, one, other = name, before.label, after.label
            if key in _LIVE_SECTIONS[name]:
                refusals.append(_refusal(path, one, other))
            else:
                lines.append(f"~ {path} {_text(one)} → {_text(other)}")
    return lines, refusals


def _refusal(path: str, before: Any, after: Any) -> str:
    change = f"{_text(before)} → {_text(after)}"
    return f"{path} cannot change while the system runs ({change}): `down`, then `up`"


def _find_heirs(
    before: Mapping[str, WorkerConfig], after: Mapping[str, WorkerConfig]
) -> tuple[dict[str, str], list[str]]:
    """Who takes over the address of whom; and the lines for those who cannot."""
    owners = {str(each.address): each.name for each in before.values() if _is_fixed(each.address)}
    heirs: dict[str, str] = {}
    refusals: list[str] = []
    for name, worker in after.items():
        owner = owners.get(str(worker.address))
        if owner is None or owner == name:
            continue
        if name not in before and owner not in after:
            heirs[name] = owner
        else:
            refusals.append(
                f"{name} cannot listen on {worker.address} before {owner} has left it: change one, "
                f"then the other"
            )
    return heirs, refusals


def _is_fixed(address: Address) -> bool:
    return address.path is not None or address.port != 0


def _text(value: Any) -> str:
    """A value as the YAML has it."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "none" if value is None else str(value)
