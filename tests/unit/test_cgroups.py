# SPDX-License-Identifier: Apache-2.0
"""Control groups: the files of both versions, and nothing left. The kernel is a folder here, a real one in tests/vm."""

import os
from pathlib import Path

import pytest

from pipeline.host import cgroups
from pipeline.host.cgroups import Limits

LIMITS = Limits(1 << 30, 64)


def kernel(root: Path, version: int) -> None:
    if version == 2:
        (root / "cgroup.controllers").write_text("memory pids\n")
        return
    for kind in ("memory", "pids"):
        (root / kind).mkdir()
        (root / kind / "cgroup.procs").touch()


def files(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in root.rglob("vm-7/*")}


@pytest.mark.parametrize(("version", "memory"), [(2, "memory.max"), (1, "memory.limit_in_bytes")])
def test_a_process_enters_a_group_with_limits(tmp_path: Path, version: int, memory: str) -> None:
    kernel(tmp_path, version)
    assert cgroups.enter(Path("/run/x"), 7, 1234, LIMITS, tmp_path)
    assert files(tmp_path) == {memory: str(1 << 30), "pids.max": "64", "cgroup.procs": "1234"}
    assert len(cgroups.left(Path("/run/x"), tmp_path)) == 3 - version
    assert cgroups.left(Path("/run/y"), tmp_path) == []


def test_a_machine_without_them(tmp_path: Path) -> None:
    assert not cgroups.enter(Path("/run/x"), 7, 1234, LIMITS, tmp_path)
    cgroups.leave(Path("/run/x"), 7, tmp_path)
    cgroups.clean_up(Path("/run/x"), tmp_path)
    assert os.listdir(tmp_path) == []


def test_empty_groups_go(tmp_path: Path) -> None:
    kernel(tmp_path, 2)
    (folder,) = (tmp_path / path.name for path in cgroups._folders(Path("/run/x"), tmp_path)[0][:1])
    for name in ("vm-1", "vm-2"):
        (folder / name).mkdir(parents=True)
    cgroups.leave(Path("/run/x"), 1, tmp_path)
    assert os.listdir(folder) == ["vm-2"]
    cgroups.clean_up(Path("/run/x"), tmp_path)
    assert cgroups.left(Path("/run/x"), tmp_path) == []


TWO = {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000", "c/cpu.max": "400000 100000",
       "d/cpu.max": "1000 100000"}
ONE = {"a/cpu.cfs_quota_us": "50000", "a/cpu.cfs_period_us": "100000", "a/b/cpu.cfs_quota_us": "-1",
       "a/b/cpu.cfs_period_us": "100000", "c/cpu.cfs_quota_us": "400000", "c/cpu.cfs_period_us": "100000",
       "d/cpu.cfs_quota_us": "1000", "d/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(("group", "share"), [("/", 1.0), ("/a", 0.5), ("/a/b", 0.5), ("/c", 1.0), ("/d", 0.01)])
@pytest.mark.parametrize("version", [1, 2])
def test_share_of_a_cpu(tmp_path: Path, version: int, group: str, share: float) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "7").mkdir(parents=True)
    for name, text in (TWO if version == 2 else ONE).items():
        file = (root if version == 2 else root / "cpu") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    lines = f"0::{group}\n" if version == 2 else f"5:memory:/\n1:cpu,cpuacct:{group}\n0::/\n"
    (proc / "7" / "cgroup").write_text(lines)
    assert cgroups.cpu_share(7, root, proc) == share
    assert cgroups.cpu_share(8, root, proc) == 1.0, "there is no such process"
