# SPDX-License-Identifier: Apache-2.0
"""Control groups: what the kernel lets a virtual machine take at most (memory, number of threads), and what CPU time it
leaves to an instance, whoever set that limit.

::

    /sys/fs/cgroup/swarmline-ID/vm-5            version 2, as Debian has it
    /sys/fs/cgroup/memory/swarmline-ID/vm-5     version 1, and the same below pids

ID stands for the run-time folder, so `down` finds them without any note. Where there are no control groups there are no
limits: QEMU has no rights all the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
GONE_TIMEOUT = 1.0       # seconds for the kernel to let go of a group whose last process has died


@dataclass(frozen=True)
class Limits:
    """``memory`` in bytes, ``threads`` of all processes together."""

    memory: int
    threads: int


def enter(run_dir: Path, vm_id: int, pid: int, limits: Limits, root: Path = ROOT) -> bool:
    """Puts a process with all its threads into a group of its own. False: this machine has no control groups that can
    be used.
    """
    folders = _folders(run_dir, root)
    try:
        for folder, files in folders:
            group = folder / f"vm-{vm_id}"
            group.mkdir(parents=True, exist_ok=True)
            if folder.parent == root:
                (folder / "cgroup.subtree_control").write_text("+memory +pids")
            for name, value in files(limits).items():
                (group / name).write_text(str(value))
            (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        leave(run_dir, vm_id, root)
        return False
    return bool(folders)


def leave(run_dir: Path, vm_id: int, root: Path = ROOT) -> None:
    """Removes the group of a dead process."""
    for folder, _ in _folders(run_dir, root):
        _remove(folder / f"vm-{vm_id}")


def clean_up(run_dir: Path, root: Path = ROOT) -> None:
    """Removes all groups of the swarm, whose processes are dead."""
    for folder, _ in _folders(run_dir, root):
        for group in folder.glob("vm-*"):
            _remove(group)
        _remove(folder)


def left(run_dir: Path, root: Path = ROOT) -> list[Path]:
    """The swarm's groups that are there."""
    return [folder for folder, _ in _folders(run_dir, root) if folder.exists()]


def cpu_share(pid: int, root: Path = ROOT, proc: Path = PROC) -> float:
    """How much of one CPU's time the process may have, 0 to 1: the smallest limit of its group and those around it.
    1 if there is none, or nobody knows.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return 1.0
    shares = [1.0]
    for _, kinds, path in (line.split(":", 2) for line in lines):
        if kinds and "cpu" not in kinds.split(","):
            continue
        mount, share = (root / "cpu", _share_one) if kinds else (root, _share_two)
        group = mount / path.strip("/")
        shares += [share(folder) for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return min(shares)


def _share_one(group: Path) -> float:
    return _share(_words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us"))


def _share_two(group: Path) -> float:
    return _share(_words(group / "cpu.max"))


def _share(words: list[str]) -> float:
    """Of quota and period; a quota of "max" or -1 is none."""
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        return 1.0
    return min(int(words[0]) / max(int(words[1]), 1), 1.0)


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []            # the outermost group has no limit


def _two(limits: Limits) -> dict[str, int]:
    return {"memory.max": limits.memory, "pids.max": limits.threads}


def _memory(limits: Limits) -> dict[str, int]:
    return {"memory.limit_in_bytes": limits.memory}


def _pids(limits: Limits) -> dict[str, int]:
    return {"pids.max": limits.threads}


def _folders(run_dir: Path, root: Path) -> list[tuple[Path, Callable[[Limits], dict[str, int]]]]:
    """The swarm's folder in each hierarchy, and what limits are called there."""
    name = f"swarmline-{sha256(os.path.abspath(run_dir).encode()).hexdigest()[:12]}"
    if (root / "cgroup.controllers").exists():
        return [(root / name, _two)]
    return [(root / kind / name, files) for kind, files in (("memory", _memory), ("pids", _pids))
            if (root / kind / "cgroup.procs").exists()]


def _remove(group: Path) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT
    while True:
        try:
            group.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                return               # a process is in it that is not ours
            time.sleep(0.01)
