"""Counting cores under cgroups, against made-up roots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lbcore.core.topology import Address, Topology, WorkerConfig
from lbcore.shell.cores import Cores, cgroup_quota, note_of_overcommit, usable_cores

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNT = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"


def make_root(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    files = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_version_2_takes_the_tightest_of_all_levels(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/b/c/cpu.max": "400000 100000\n",
    }
    root = make_root(tmp_path, "0::/a/b/c\n", V2_MOUNT, files)
    assert cgroup_quota(root) == 1.5


def test_version_1(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    }
    root = make_root(tmp_path, "4:cpu,cpuacct:/docker/x\n3:cpuset:/y\n", V1_MOUNT, files)
    assert cgroup_quota(root) == 0.5


def test_in_a_container_only_the_own_part_is_mounted(tmp_path: Path) -> None:
    mounts = "32 31 0:29 /docker/x /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    files = {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
    }
    root = make_root(tmp_path, "4:cpu:/docker/x\n", mounts, files)
    assert cgroup_quota(root) == 2.0


@pytest.mark.parametrize("quota", ["", "nonsense", "max 100000", "1 0"])
def test_no_limit_and_no_sense_are_no_quota(tmp_path: Path, quota: str) -> None:
    files = {"sys/fs/cgroup/cpu.max": quota}
    assert cgroup_quota(make_root(tmp_path, "0::/\n", V2_MOUNT, files)) is None


def test_a_system_without_cgroups_has_its_affinity(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) is None
    assert usable_cores(tmp_path).number == len(os.sched_getaffinity(0))


def test_a_quota_below_the_affinity_counts(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "50000 100000"}
    root = make_root(tmp_path, "0::/\n", V2_MOUNT, files)
    assert usable_cores(root) == Cores(0.5, "cgroup quota")


def test_the_note_counts_workers_times_concurrency() -> None:
    workers = tuple(WorkerConfig(name=f"worker-{n}", concurrency=n) for n in (1, 2, 3))
    topology = Topology(name="test", broker=Address(), workers=workers)
    assert note_of_overcommit(topology, Cores(6.0, "")) is None
    note = note_of_overcommit(topology, Cores(1.5, "cgroup quota"))
    assert note is not None
    assert "workers x concurrency = 6, on 1.5 cores (cgroup quota)" in note
    assert "on 1 core:" in (note_of_overcommit(topology, Cores(1.0, "")) or "")
