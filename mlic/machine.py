"""The CPUs of this machine that a process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cpus(cgroups: Path = _CGROUPS) -> int:
    """The CPUs that this process may compute on, 1 or more: its affinity, within the quota of its control groups.

    A container with `--cpus 2`, or a pod with a CPU limit, sees all CPUs of its machine and is slowed down beyond its
    quota. Where the system knows no affinity, as macOS, all CPUs count.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    quota = _quota(cgroups)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def _quota(cgroups: Path) -> float | None:
    """CPUs by the quota of the control group, the smallest on the way up to the root; None where there is none."""
    limits = []
    for folder in _own_groups(cgroups):
        limit = _read(folder / "cpu.max").split()  # version 2: "QUOTA PERIOD" in microseconds, or "max PERIOD"
        if len(limit) == 2 and limit[0].isdigit():
            limits.append(int(limit[0]) / int(limit[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")  # version 1
        if quota.isdigit() and period.isdigit() and int(period):
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _own_groups(cgroups: Path) -> list[Path]:
    """The folders of this process's control groups and of those above them."""
    groups = [cgroups, cgroups / "cpu"]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        base = cgroups if not controllers else cgroups / controllers
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = base / path.lstrip("/")
        groups += [group, *(parent for parent in group.parents if parent.is_relative_to(base))]
    return groups


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
