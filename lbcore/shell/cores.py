"""How many cores this process may really use: affinity and the cgroup's CPU quota counted.

A container with a quota of 2 cores on a machine of 64 has 2.  Reads ``/proc`` and ``/sys``; where
these are missing it takes the machine's count.  Called by ``up`` for its note at start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from lbcore.core.topology import Topology

_ROOT: Final = Path("/")
_Reader: TypeAlias = Callable[[Path], float | None]


class Cores(NamedTuple):
    """``number`` may be a fraction; ``limit`` says what keeps it below the machine's."""

    number: float
    limit: str


def usable_cores(root: Path = _ROOT) -> Cores:
    """The cores of this machine that this process may use.  ``root`` is for tests."""
    machine = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    cores = Cores(float(affinity), "affinity" if affinity < machine else "")
    quota = cgroup_quota(root)
    if quota is not None and quota < cores.number:
        cores = Cores(quota, "cgroup quota")
    return cores


def note_of_overcommit(topology: Topology, cores: Cores) -> str | None:
    """One line when the workers can run more at once than there are cores, else None."""
    at_once = sum(worker.concurrency for worker in topology.workers)
    if at_once <= cores.number:
        return None
    limit = f" ({cores.limit})" if cores.limit else ""
    return (
        f"note: workers x concurrency = {at_once}, on {cores.number:g} "
        f"core{'' if cores.number == 1 else 's'}{limit}: CPU-bound tasks will share them"
    )


def cgroup_quota(root: Path = _ROOT) -> float | None:
    """The tightest CPU quota of this process's cgroups, in cores; None when there is none."""
    try:
        own = (root / "proc/self/cgroup").read_text()
        mounts = (root / "proc/self/mountinfo").read_text()
    except OSError:
        return None
    quotas: list[float] = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            quotas += _quotas_upwards(root, _mount_of(mounts, "cgroup2", ""), path, _quota_v2)
        elif "cpu" in controllers.split(","):
            quotas += _quotas_upwards(root, _mount_of(mounts, "cgroup", "cpu"), path, _quota_v1)
    return min(quotas, default=None)


def _mount_of(mounts: str, kind: str, controller: str) -> tuple[str, str] | None:
    """(mount point, the part of the hierarchy that is mounted there)."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, details = before.split(), after.split()
        if len(fields) < 5 or len(details) < 3 or details[0] != kind:
            continue
        if not controller or controller in details[2].split(","):
            return fields[4], fields[3]
    return None


def _quotas_upwards(
    root: Path,
    mount: tuple[str, str] | None,
    path: str,
    read: _Reader,
) -> list[float]:
    """The quotas of a cgroup and of all above it: each of them binds."""
    if mount is None:
        return []
    point, mounted = mount
    # in a container the path may be the host's, of which only the lower part is mounted
    inside = path[len(mounted) :] if mounted != "/" and path.startswith(mounted) else path
    top = root / point.lstrip("/")
    folder = top / inside.strip("/")
    found = [read(place) for place in (folder, *folder.parents) if place.is_relative_to(top)]
    return [quota for quota in found if quota is not None]


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 and period > 0 else None
