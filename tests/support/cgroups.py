# SPDX-License-Identifier: Apache-2.0
"""CPU time of a process, limited by a control group of either version."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

V1, V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")


def no_cpu_groups() -> str:
    """Why there are none, or an empty string."""
    if (V1 / "cgroup.procs").exists():
        return "" if os.access(V1, os.W_OK) else f"{V1} is not writable"
    controllers = V2 / "cgroup.subtree_control"
    if not controllers.exists() or not os.access(controllers, os.W_OK):
        return "no control groups that may be changed"
    if "cpu" not in (V2 / "cgroup.controllers").read_text().split():
        return "no cpu controller"
    return ""


@contextmanager
def cpu_group(name: str, pid: int, seconds: float, period: float) -> Iterator[None]:
    """The process may run for so many seconds in each period of so many: at least 1 ms, in at most 1 s."""
    quota, length = str(round(seconds * 1e6)), str(round(period * 1e6))
    version1 = (V1 / "cgroup.procs").exists()
    root = V1 if version1 else V2
    group = root / name
    if not version1:
        (V2 / "cgroup.subtree_control").write_text("+cpu")
    group.mkdir()
    try:
        if version1:
            (group / "cpu.cfs_period_us").write_text(length)
            (group / "cpu.cfs_quota_us").write_text(quota)
        else:
            (group / "cpu.max").write_text(f"{quota} {length}")
        home = group / "cgroup.procs"
        home.write_text(str(pid))
        yield
    finally:
        for member in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(member)
        group.rmdir()
